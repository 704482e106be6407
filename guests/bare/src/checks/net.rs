//! Network cards. The first is in QEMU's own network, where a gateway answers; the second and the third are on one wire.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

use ringway_driver::Transport;
use ringway_driver::net::{Mac, Mode, Net, Offload, Options};
use ringway_spec::net::{DEVICE_ID, F_CTRL_VLAN, F_MRG_RXBUF};

use super::{LIMIT, QUIET, Random, Tally, Variant, ask, devices};
use crate::bus::{Interrupts, Slot};
use crate::failure::{Result, ensure, fail};
use crate::interrupts::wait_until;
use crate::memory::Dma;

pub(super) fn run<S: Slot>(tally: &mut Tally, slots: &[S], variant: Variant) {
    tally.check("what the card says", || says(slots, variant));
    tally.check("the gateway answers", || gateway(slots, variant, 0));
    tally.check("the gateway answers, a buffer for each frame", || gateway(slots, variant, F_MRG_RXBUF));
    tally.check("frames arrive whole and in order", || wire(slots, 1, variant, 0));
    tally.check("frames arrive in a buffer each", || wire(slots, 1, variant, F_MRG_RXBUF));
    tally.check("frames interrupt", || interrupts(slots, 1, variant));
    tally.check("only what is wanted arrives", || filters(slots, variant));
    tally.check("only wanted VLANs arrive", || vlans(slots, variant));
    tally.check("the link goes down and up", || link(slots, variant));
}

/// The same for two cards behind something else than QEMU, the first of the machine.
pub(super) fn run_wire<S: Slot>(tally: &mut Tally, slots: &[S], variant: Variant) {
    tally.check("frames arrive whole and in order", || wire(slots, 0, variant, 0));
    tally.check("frames arrive in a buffer each", || wire(slots, 0, variant, F_MRG_RXBUF));
    tally.check("frames interrupt", || interrupts(slots, 0, variant));
}

const BROADCAST: Mac = [0xff; 6];
/// Ethertype for local experiments (IEEE 802, 9.2.3).
const EXPERIMENT: u16 = 0x88b5;

/// A card, set up.
struct Card<T: Transport> {
    net: Net<T>,
    interrupts: Interrupts,
}

fn open<S: Slot>(slots: &[S], number: usize, variant: Variant, without: u64) -> Result<Card<S::Transport>> {
    let Some(slot) = devices(slots, DEVICE_ID).nth(number) else { fail!("there is no card {number}") };
    let interrupts = slot.interrupts();
    let options = Options {
        without: variant.without | without,
        queue_size: 64,
        vector: if interrupts.queues.entry.is_some() { |_| Some(1) } else { |_| None },
        config_vector: interrupts.config.entry,
        ..Options::default()
    };
    Ok(Card { net: Net::new(slot.open()?, Arc::new(Dma), &options)?, interrupts })
}

impl<T: Transport> Card<T> {
    fn send(&mut self, frame: &[u8]) -> Result<()> {
        let pair = self.net.pair(0);
        pair.tx.send(frame, &Offload::None)?;
        pair.tx.flush();
        Ok(())
    }

    /// The next frame, if one comes in time.
    fn receive(&mut self, limit: Duration) -> Result<Option<Vec<u8>>> {
        let rx = &mut self.net.pair(0).rx;
        wait_until(limit, || rx.has_work() || rx.arm());
        let Some(received) = rx.next()? else { return Ok(None) };
        let mut bytes = vec![0; received.frame.len()];
        received.frame.read(0, &mut bytes);
        rx.recycle(received.frame);
        rx.flush();
        Ok(Some(bytes))
    }

    /// The next frame of a kind; others are passed over.
    fn expect(&mut self, what: &str, is_it: impl Fn(&[u8]) -> bool) -> Result<Vec<u8>> {
        for _ in 0..100 {
            match self.receive(LIMIT)? {
                Some(frame) if is_it(&frame) => return Ok(frame),
                Some(_) => {}
                None => break,
            }
        }
        fail!("no {what}")
    }
}

fn ethernet(to: Mac, from: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &ethertype.to_be_bytes(), payload].concat()
}

fn says<S: Slot>(slots: &[S], variant: Variant) -> Result<()> {
    let card = open(slots, 0, variant, 0)?;
    ensure!(card.net.mac() == [0x52, 0x54, 0, 0x12, 0x34, 0x56], "its address is {:x?}", card.net.mac());
    ensure!(card.net.link().is_up, "the link is {:?}", card.net.link());
    ensure!(card.net.features() & F_MRG_RXBUF != 0, "features {:#x}", card.net.features());
    ensure!(card.net.features() & variant.without == 0, "features {:#x}", card.net.features());
    Ok(())
}

const OWN_IP: [u8; 4] = [10, 0, 2, 15];
const GATEWAY_IP: [u8; 4] = [10, 0, 2, 2];

/// The sum of the Internet's checksums (RFC 1071).
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// An ICMP echo request from us to the gateway, from the IP header on.
fn echo(number: u16, data: &[u8]) -> Vec<u8> {
    let mut icmp = [&[8, 0, 0, 0, 0x12, 0x34][..], &number.to_be_bytes(), data].concat();
    let sum = checksum(&icmp);
    icmp[2..4].copy_from_slice(&sum);
    let len = (20 + icmp.len() as u16).to_be_bytes();
    let mut ip = [&[0x45, 0, len[0], len[1], 0, 0, 0, 0, 64, 1, 0, 0][..], &OWN_IP, &GATEWAY_IP].concat();
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum);
    ip.extend(icmp);
    ip
}

/// Asks for the gateway's address, and has it answer pings of many sizes.
fn gateway<S: Slot>(slots: &[S], variant: Variant, without: u64) -> Result<()> {
    const ARP: u16 = 0x0806;
    const IPV4: u16 = 0x0800;
    let mut card = open(slots, 0, variant, without)?;
    let own = card.net.mac();
    let request = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &own, &OWN_IP, &[0; 6], &GATEWAY_IP].concat();
    card.send(&ethernet(BROADCAST, own, ARP, &request))?;
    let is_answer = |frame: &[u8]| frame.len() >= 42 && frame[12..14] == [8, 6] && frame[21] == 2;
    let answer = card.expect("answer to ARP", is_answer)?;
    ensure!(answer[28..32] == GATEWAY_IP, "{:?} answers", &answer[28..32]);
    let mut gateway = [0; 6];
    gateway.copy_from_slice(&answer[22..28]);

    let mut random = Random::new(7);
    for (number, len) in (1..).zip([0, 1, 18, 56, 300, 999, 1300, 1472]) {
        let data: Vec<_> = (0..len).map(|_| random.below(256) as u8).collect();
        card.send(&ethernet(gateway, own, IPV4, &echo(number, &data)))?;
        let is_reply = |frame: &[u8]| {
            frame.len() >= 42
                && frame[12..14] == [8, 0]
                && frame[23] == 1
                && frame[40..42] == number.to_be_bytes()
        };
        let reply = card.expect("reply to a ping", is_reply)?;
        ensure!(reply[34] == 0, "a reply of type {}", reply[34]);
        ensure!(reply.len() >= 42 + len && reply[42..42 + len] == data, "other data than {len} bytes sent");
    }
    Ok(())
}

/// A frame with a number in it, of some length.
fn numbered(to: Mac, from: Mac, number: u32, len: usize) -> Vec<u8> {
    let mut payload = number.to_be_bytes().to_vec();
    payload.extend((0..len).map(|i| (number as usize + i) as u8));
    ethernet(to, from, EXPERIMENT, &payload)
}

/// Sends until something arrives: what is between two cards may take a moment to know them. Then nothing is on its way.
fn meet<T: Transport>(from: &mut Card<T>, to: &mut Card<T>) -> Result<()> {
    let (source, target) = (from.net.mac(), to.net.mac());
    for _ in 0..200 {
        from.send(&numbered(target, source, u32::MAX, 60))?;
        if to.receive(QUIET)?.is_some() {
            while to.receive(QUIET)?.is_some() {}
            return Ok(());
        }
    }
    fail!("nothing arrives")
}

/// Frames of many sizes, in bursts, from one card to the next.
fn wire<S: Slot>(slots: &[S], first: usize, variant: Variant, without: u64) -> Result<()> {
    let (mut from, mut to) =
        (open(slots, first, variant, without)?, open(slots, first + 1, variant, without)?);
    let (source, target) = (from.net.mac(), to.net.mac());
    meet(&mut from, &mut to)?;
    let mut random = Random::new(3);
    let mut number = 0;
    while number < 1000 {
        let burst: Vec<_> = (0..=random.below(16) as u32)
            .map(|i| numbered(target, source, number + i, 42 + random.below(1455) as usize))
            .collect();
        for frame in &burst {
            from.net.pair(0).tx.send(frame, &Offload::None)?;
        }
        from.net.pair(0).tx.flush();
        for frame in &burst {
            let Some(received) = to.receive(LIMIT)? else { fail!("frame {number} does not arrive") };
            ensure!(received == *frame, "frame {number} of {} bytes came as {}", frame.len(), received.len());
            number += 1;
        }
    }
    let dropped = to.net.pair(0).rx.dropped();
    ensure!(dropped == ringway_driver::net::Dropped::default(), "{dropped:?}");
    Ok(())
}

fn interrupts<S: Slot>(slots: &[S], first: usize, variant: Variant) -> Result<()> {
    let (mut from, mut to) = (open(slots, first, variant, 0)?, open(slots, first + 1, variant, 0)?);
    let (source, target) = (from.net.mac(), to.net.mac());
    meet(&mut from, &mut to)?;
    let queues = to.interrupts.queues;
    for number in 0..10 {
        ensure!(!to.net.pair(0).rx.arm(), "a frame is there that was not sent");
        let seen = queues.seen();
        from.send(&numbered(target, source, number, 60))?;
        ensure!(queues.wait(seen, LIMIT), "no interrupt for frame {number}");
        ensure!(to.net.interrupt()?.queues, "the interrupt is about something else");
        to.net.pair(0).rx.suppress();
        ensure!(to.receive(LIMIT)?.is_some(), "frame {number} interrupts, and is not there");
    }
    Ok(())
}

/// Whether a frame to an address arrives.
fn arrives<T: Transport>(from: &mut Card<T>, to: &mut Card<T>, address: Mac) -> Result<bool> {
    let source = from.net.mac();
    from.send(&numbered(address, source, 1, 60))?;
    // What always arrives comes behind it.
    let target = to.net.mac();
    from.send(&numbered(target, source, 2, 60))?;
    let first = to.expect("frame to the card", |frame| frame[12..14] == EXPERIMENT.to_be_bytes())?;
    if first[17] == 2 {
        return Ok(false);
    }
    to.expect("second frame", |frame| frame[17] == 2)?;
    Ok(true)
}

fn filters<S: Slot>(slots: &[S], variant: Variant) -> Result<()> {
    let (mut from, mut to) = (open(slots, 1, variant, 0)?, open(slots, 2, variant, 0)?);
    let (other, group) = ([2, 0, 0, 0, 0, 9], [1, 0, 0x5e, 0, 0, 9]);
    let mut check = |to: &mut Card<_>, what: &str, address, expected| {
        let found = arrives(&mut from, to, address)?;
        ensure!(found == expected, "{what}: a frame to {address:x?} arrives: {found}");
        Ok(())
    };
    to.net.set_mode(Mode::Promiscuous, false)?;
    check(&mut to, "by itself", other, false)?;
    check(&mut to, "by itself", group, false)?;
    check(&mut to, "by itself", BROADCAST, true)?;
    to.net.set_mode(Mode::Promiscuous, true)?;
    check(&mut to, "promiscuous", other, true)?;
    to.net.set_mode(Mode::Promiscuous, false)?;
    to.net.set_mode(Mode::AllMulticast, true)?;
    check(&mut to, "all multicast", group, true)?;
    check(&mut to, "all multicast", other, false)?;
    to.net.set_mode(Mode::AllMulticast, false)?;
    to.net.set_addresses(&[other], &[group])?;
    check(&mut to, "with a table", other, true)?;
    check(&mut to, "with a table", group, true)?;
    to.net.set_addresses(&[], &[])?;
    check(&mut to, "with an empty table", other, false)?;
    to.net.set_mode(Mode::NoBroadcast, true)?;
    check(&mut to, "no broadcast", BROADCAST, false)?;
    to.net.set_mode(Mode::NoBroadcast, false)?;
    let before = to.net.mac();
    to.net.set_mac(other)?;
    ensure!(to.net.mac() == other, "the address is {:x?}", to.net.mac());
    check(&mut to, "with another address", before, false)?;
    to.net.set_mac(before)?;
    check(&mut to, "with its address again", BROADCAST, true)
}

fn vlans<S: Slot>(slots: &[S], variant: Variant) -> Result<()> {
    let (mut from, mut to) = (open(slots, 1, variant, 0)?, open(slots, 2, variant, 0)?);
    ensure!(to.net.features() & F_CTRL_VLAN != 0, "features {:#x}", to.net.features());
    let (source, target) = (from.net.mac(), to.net.mac());
    to.net.set_mode(Mode::Promiscuous, false)?;
    let tagged = |vlan: u8| {
        let payload = [&[0, vlan][..], &EXPERIMENT.to_be_bytes(), &[vlan; 60]].concat();
        ethernet(target, source, 0x8100, &payload)
    };
    for wanted in [&[][..], &[5], &[5, 6], &[6]] {
        for vlan in [4, 5, 6] {
            to.net.set_vlan(vlan.into(), wanted.contains(&vlan))?;
            from.send(&tagged(vlan))?;
        }
        let mut found = Vec::new();
        while let Some(frame) = to.receive(QUIET)? {
            found.push(frame[15]);
        }
        ensure!(found == wanted, "VLANs {found:?} arrive where {wanted:?} are wanted");
    }
    Ok(())
}

fn link<S: Slot>(slots: &[S], variant: Variant) -> Result<()> {
    let mut card = open(slots, 0, variant, 0)?;
    let config = card.interrupts.config;
    for is_up in [false, true] {
        let seen = config.seen();
        ask(if is_up { "link card0 up" } else { "link card0 down" });
        ensure!(config.wait(seen, LIMIT), "no interrupt tells of the link");
        let change = card.net.interrupt()?;
        let link = change.link.map(|link| link.is_up);
        ensure!(link == Some(is_up) && card.net.link().is_up == is_up, "the link is said to be {change:?}");
    }
    Ok(())
}
