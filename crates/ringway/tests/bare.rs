//! Ours against ours: the network driver of a program without an operating system (`guests/bare`), through QEMU's PCI and
//! vhost-user, on `ringway switch`.

use std::path::Path;
use std::time::Duration;

use anyhow::bail;
use ringway_testkit::bare::{Bare, Machine};
use ringway_testkit::server::Server;

#[test]
fn two_cards_on_the_switch() {
    let server = Server::switch(Path::new(env!("CARGO_BIN_EXE_ringway")), &["a", "b"], &[]).unwrap();
    let mut bare = Bare::new(Machine::Q35).unwrap().arguments(&[
        "-object",
        "memory-backend-memfd,id=mem,size=256M,share=on",
        "-machine",
        "memory-backend=mem",
    ]);
    for (number, port) in ["a", "b"].into_iter().enumerate() {
        let chardev = format!("socket,id=c{number},path={}", server.socket(port).display());
        let netdev = format!("vhost-user,id=n{number},chardev=c{number}");
        bare = bare
            .arguments(&["-chardev", &chardev, "-netdev", &netdev])
            .device("virtio-net", &format!("netdev=n{number},mac=02:00:00:00:00:0{}", number + 1));
    }
    let checks = ["frames arrive whole and in order", "frames arrive in a buffer each", "frames interrupt"];
    let expected: Vec<_> = ["packed", "packed-plain", "split", "split-plain"]
        .iter()
        .flat_map(|variant| checks.iter().map(move |check| format!("wire {variant}: {check}")))
        .collect();
    let report = bare.run("checks=wire", Duration::from_secs(90), |_, request| bail!("{request}")).unwrap();
    report.expect(&expected).unwrap();
}
