//! What network devices alone are told.

use ringway_spec::net;
use ringway_vhost::message::{Request, protocol_feature as pf};

use crate::case::{Case, Seen};
use crate::context::Context;
use crate::device::Device;

pub(super) const CASES: &[Case] = &[
    Case::must("send-rarp", &["VU-BE-send-rarp-00"], "SEND_RARP succeeds while rings run", send_rarp)
        .with_protocol(pf::RARP)
        .of(&[Device::Net]),
    Case::must(
        "net-set-mtu",
        &["VU-BE-net-set-mtu-00", "VU-BE-net-set-mtu-01"],
        "NET_SET_MTU of 1500 is answered with 0",
        set_mtu,
    )
    .with_features(net::F_MTU)
    .with_protocol(pf::MTU | pf::REPLY_ACK)
    .of(&[Device::Net]),
];

fn send_rarp(context: &Context) -> Seen {
    let mut rig = context.running(0, pf::RARP)?;
    rig.session.set(Request::SendRarp(0x7700_0000_0002))?;
    rig.session.barrier()?;
    rig.requests_are_used(1)?;
    Ok("taken".into())
}

fn set_mtu(context: &Context) -> Seen {
    let mut session = context.negotiate(net::F_MTU, pf::MTU)?;
    session.set(Request::NetSetMtu(1500))?;
    session.barrier()?;
    Ok("taken".into())
}
