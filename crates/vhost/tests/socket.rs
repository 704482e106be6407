//! The socket of a session: where a message's file descriptors may come.

use std::fs::File;
use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use ringway_vhost::message::Kind;
use ringway_vhost::socket::Socket;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// Sends bytes with a file descriptor beside them.
fn send(stream: &UnixStream, bytes: &[u8], fd: impl AsFd) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd.as_fd()];
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    let sent = sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::empty());
    assert_eq!(sent, Ok(bytes.len()));
}

/// [VU-BE-communication-01] What comes beside the header belongs to the message; what comes beside its payload belongs
/// to nobody, and is closed.
#[test]
fn file_descriptors_come_with_the_header() {
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let mut socket = Socket::new(theirs, Kind::Request).expect("a socket");
    let file = tempfile::tempfile().expect("a temporary file");
    file.set_len(77).expect("its length");
    let (read, write) = rustix::pipe::pipe().expect("a pipe");

    let header: Vec<u8> = [6_u32, 1, 16].iter().flat_map(|word| word.to_le_bytes()).collect();
    send(&ours, &header, file);
    assert!(socket.receive().expect("half of it").is_none());
    send(&ours, &[0; 16], write);
    let message = socket.receive().expect("received").expect("a whole message");
    let [fd] = <[_; 1]>::try_from(message.fds).expect("one file descriptor");
    assert_eq!(File::from(fd).metadata().expect("a file").len(), 77);
    assert_eq!(File::from(read).read(&mut [0]).expect("the end"), 0, "nobody holds the other end");
}
