//! The handshake with anything for a server.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// Something that a server says: nonsense, or what is nearly right.
fn utterance() -> impl Strategy<Value = Vec<u8>> {
    let option = prop_oneof![Just(OPT_STARTTLS), Just(OPT_GO), Just(OPT_EXPORT_NAME), any::<u32>()];
    let reply = prop_oneof![
        Just(REP_ACK),
        Just(REP_INFO),
        Just(REP_ERR_UNSUP),
        Just(REP_ERR_UNKNOWN),
        Just(REP_FLAG_ERROR + 3),
        any::<u32>()
    ];
    let data = prop_oneof![vec(any::<u8>(), 0..20), info(INFO_EXPORT, 10), info(INFO_BLOCK_SIZE, 12)];
    let replies = (option, reply, data, proptest::option::weighted(0.1, any::<u32>()));
    prop_oneof![
        1 => vec(any::<u8>(), 0..40),
        2 => any::<u16>().prop_map(|flags| [&b"NBDMAGICIHAVEOPT"[..], &flags.to_be_bytes()].concat()),
        8 => replies.prop_map(|(option, reply, data, len)| {
            let len = len.unwrap_or(data.len() as u32);
            [&OPTION_REPLY_MAGIC.to_be_bytes()[..], &option.to_be_bytes(), &reply.to_be_bytes(), &len.to_be_bytes(), &data]
                .concat()
        }),
    ]
}

fn info(kind: u16, len: usize) -> impl Strategy<Value = Vec<u8>> {
    // Nearly all sizes are too large else, and nearly all blocks impossible.
    let byte = prop_oneof![4 => Just(0), 1 => Just(2), 1 => any::<u8>()];
    vec(byte, len).prop_map(move |bytes| [&kind.to_be_bytes()[..], &bytes].concat())
}

proptest! {
    #[test]
    fn whatever_a_server_says_is_judged(
        with_tls in any::<bool>(),
        greeting in proptest::option::weighted(0.9, 0u16..4),
        said in vec(utterance(), 0..100),
    ) {
        let greeting = greeting.map(|flags| [&b"NBDMAGICIHAVEOPT"[..], &flags.to_be_bytes()].concat());
        let stream: Vec<u8> = greeting.into_iter().chain(said).flatten().collect();
        let mut rest = &stream[..];
        let (mut handshake, mut step) = Handshake::new("name", with_tls);
        let mut steps = 0;
        loop {
            steps += 1;
            prop_assert!(steps < 2 * MAX_INFOS + 10, "it has an end");
            let heard = match step {
                Step::Exchange { say, hear } => {
                    prop_assert!(hear > 0 && hear <= MAX_OPTION_REPLY as usize, "{hear} bytes");
                    prop_assert!(say.len() < 100);
                    let Some((heard, others)) = rest.split_at_checked(hear) else { break };
                    rest = others;
                    heard
                }
                Step::StartTls => {
                    prop_assert!(with_tls);
                    &[]
                }
                Step::Done(export) => {
                    prop_assert!(export.size <= MAX_SIZE);
                    prop_assert!(export.min_block.is_power_of_two() && export.min_block <= 1 << 16);
                    prop_assert!(export.max_payload >= export.min_block && export.max_payload <= MAX_PAYLOAD);
                    prop_assert_eq!(export.max_payload % export.min_block, 0);
                    break;
                }
            };
            match handshake.next(heard) {
                Ok(next) => step = next,
                Err(e) => {
                    prop_assert!(e.to_string().len() < 2000);
                    break;
                }
            }
        }
    }
}

#[test]
fn abilities_of_a_server_without_flags_are_none() {
    let export = Export::new(512, !1).unwrap();
    assert!(!export.is_read_only() && !export.can_flush() && !export.can_write_stably());
}

#[test]
fn only_what_is_no_less_can_replace_an_export() {
    let export =
        |size, flags: u16, min| Export::new(size, flags).unwrap().with_blocks((min, 4096, 1 << 20)).unwrap();
    let old = export(1 << 20, 0b0_0101, 512);
    assert_eq!(old.change_since(&old), None);
    assert_eq!(export(1 << 20, 0b0_1101, 1).change_since(&old), None, "more abilities, smaller blocks");
    assert_eq!(old.change_since(&export(1 << 20, 0b0_0111, 512)), None, "it was read-only");
    for (now, said) in [
        (export(1 << 21, 0b0_0101, 512), "it has 2097152 bytes, and had 1048576"),
        (export(1 << 20, 0b0_0001, 512), "it has no SEND_FLUSH any more"),
        (export(1 << 20, 0b0_0111, 512), "it is read-only now"),
        (export(1 << 20, 0b0_0101, 4096), "it has blocks of 4096 bytes, and had 512"),
    ] {
        assert_eq!(now.change_since(&old).as_deref(), Some(said));
    }
}

#[test]
fn payloads_are_whole_blocks_and_no_attack() {
    let blocks = |min, preferred, max| Export::new(0, 1).unwrap().with_blocks((min, preferred, max)).unwrap();
    assert_eq!(blocks(1, 512, u32::MAX).max_payload, 32 << 20);
    assert_eq!(blocks(4096, 4096, 10_000).max_payload, 8192);
}
