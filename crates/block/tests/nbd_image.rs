//! Exports of NBD servers as images.

mod common;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use common::run;
use ringway_block::image::{Image, ImageError, ImageSpec, OpenOptions, Way};
use ringway_block::job::Operation;

const MIB: u64 = 1 << 20;

/// A server, gone when dropped.
struct Server(Child);

impl Server {
    fn start(socket: &Path, args: &[&str]) -> Self {
        let mut command = Command::new("nbdkit");
        command.args(["-f", "-U"]).arg(socket).args(args).stdin(Stdio::null());
        let server = Self(command.spawn().expect("nbdkit is installed"));
        let deadline = Instant::now() + common::SOON;
        while !socket.exists() {
            assert!(Instant::now() < deadline, "nbdkit does not listen");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_export_is_what_its_server_says() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("nbd");
    let server =
        Server::start(&socket, &["--filter=blocksize-policy", "memory", "1M", "blocksize-minimum=4096"]);
    let spec: ImageSpec = format!("nbd+unix:///?socket={}", socket.display()).parse().unwrap();
    let mut image = Image::open(&spec, &OpenOptions::default()).unwrap();
    let facts = image.facts().clone();
    assert_eq!((facts.size, facts.logical_block_size, facts.read_only), (MIB, 4096, false));
    assert!(facts.can_discard && facts.can_write_zeroes && facts.can_flush && !facts.can_secure_erase);
    let Way::Elsewhere(client) = image.way() else { panic!("not here") };
    run(&*client, Operation::Write { offset: 4096, stable: true }, &[7; 4096]).0.unwrap();
    let (result, bytes) = run(&*client, Operation::Read { offset: 0 }, &[1; 8192]);
    result.unwrap();
    assert!(bytes[..4096] == [0; 4096] && bytes[4096..] == [7; 4096]);
    assert!(matches!(image.resize(2 * MIB, false), Err(ImageError::NotResizable(_))));
    let small = OpenOptions { logical_block_size: Some(512), ..OpenOptions::default() };
    let error = Image::open(&spec, &small).err().unwrap().to_string();
    assert_eq!(error, format!("{spec} cannot have logical blocks of 512 bytes: the server needs 4096"));
    drop((image, client, server));
    let error = Image::open(&spec, &OpenOptions::default()).err().unwrap().to_string();
    assert!(error.starts_with(&format!("cannot use {spec}: cannot connect: ")), "{error}");
}

#[test]
fn an_export_that_cannot_be_written_to_is_a_disk_that_cannot() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("nbd");
    let _server = Server::start(&socket, &["-r", "memory", "1M"]);
    let spec: ImageSpec = format!("nbd+unix:///?socket={}", socket.display()).parse().unwrap();
    let image = Image::open(&spec, &OpenOptions::default()).unwrap();
    let facts = image.facts();
    assert!(facts.read_only && !facts.can_discard && !facts.can_write_zeroes && !facts.zeroes_may_unmap);
}
