//! The NBD client with servers that do what they should not, and servers that go away and come back.

mod common;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{SOON, buffer, run_all, wait_for};
use ringway_block::job::{Executor, Job, Mailbox, Operation, Range};
use ringway_block::nbd::{Client, Export, NbdError, Options, ProtocolError};
use ringway_memory::{Access, BusAddr, FrontendVa, Gpa, Kept, Mapping, MemoryTable, ScatterList};
use tempfile::TempDir;

const SIZE: u64 = 1 << 20;
const READ: u16 = 0;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;
/// `HAS_FLAGS` and `SEND_FLUSH`.
const FLUSHES: u16 = 1 | 1 << 2;
const ESHUTDOWN: u32 = 108;

/// A socket where a test is the server, connection by connection.
struct Server {
    listener: UnixListener,
    path: PathBuf,
    _dir: TempDir,
}

impl Server {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        Self { listener, path, _dir: dir }
    }

    fn accept(&self) -> Peer {
        let deadline = Instant::now() + SOON;
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false).unwrap();
                    stream.set_read_timeout(Some(SOON)).unwrap();
                    stream.set_write_timeout(Some(SOON)).unwrap();
                    return Peer(stream);
                }
                Err(e) => assert_eq!(e.kind(), io::ErrorKind::WouldBlock),
            }
            assert!(Instant::now() < deadline, "nobody connects");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// A client, whose handshake is served by `serve`.
    fn try_connect<T: Send>(
        &self,
        options: Options,
        serve: impl FnOnce(Peer) -> T + Send,
    ) -> (Result<(Arc<Client>, Export), NbdError>, T) {
        let uri = format!("nbd+unix:///disk?socket={}", self.path.display()).parse().unwrap();
        std::thread::scope(|scope| {
            let server = scope.spawn(|| serve(self.accept()));
            (Client::connect(&uri, &options), server.join().unwrap())
        })
    }

    fn connect(&self, options: Options) -> (Arc<Client>, Peer) {
        let (client, peer) = self.try_connect(options, |peer| peer.greet(SIZE, FLUSHES));
        (client.unwrap().0, peer)
    }

    /// The client connects anew.
    fn accept_again(&self) -> Peer {
        self.accept().greet(SIZE, FLUSHES)
    }
}

/// A server's side of a connection.
struct Peer(UnixStream);

#[derive(Debug, PartialEq, Eq)]
struct Request {
    command: u16,
    flags: u16,
    cookie: u64,
    offset: u64,
    len: u32,
    data: Vec<u8>,
}

impl Peer {
    fn say(&mut self, parts: &[&[u8]]) {
        self.0.write_all(&parts.concat()).unwrap();
    }

    fn hear<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn hear_vec(&mut self, len: u32) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// That the client closes the connection.
    fn expect_end(mut self) {
        match self.0.read(&mut [0; 64]) {
            Ok(n) => assert_eq!(n, 0, "the client goes on"),
            Err(e) => assert_eq!(e.kind(), io::ErrorKind::ConnectionReset),
        }
    }

    /// Says who it is, and hears which option the client begins with.
    fn hello(&mut self) -> u32 {
        self.say(&[b"NBDMAGICIHAVEOPT", &3u16.to_be_bytes()]);
        assert_eq!(self.hear::<4>(), 3u32.to_be_bytes());
        self.option()
    }

    fn option(&mut self) -> u32 {
        assert_eq!(self.hear::<8>(), *b"IHAVEOPT");
        let option = u32::from_be_bytes(self.hear());
        let len = u32::from_be_bytes(self.hear());
        let data = self.hear_vec(len);
        if option == 7 {
            assert_eq!(data, b"\0\0\0\x04disk\0\x01\0\x03");
        }
        option
    }

    fn reply_to_go(&mut self, reply: u32, data: &[u8]) {
        let len = (data.len() as u32).to_be_bytes();
        self.say(&[
            &0x0003_e889_0455_65a9_u64.to_be_bytes(),
            &7u32.to_be_bytes(),
            &reply.to_be_bytes(),
            &len,
            data,
        ]);
    }

    fn info_export(&mut self, size: u64, flags: u16) {
        self.reply_to_go(3, &[&[0, 0][..], &size.to_be_bytes(), &flags.to_be_bytes()].concat());
    }

    fn info_blocks(&mut self, min: u32, preferred: u32, max: u32) {
        self.reply_to_go(
            3,
            &[&[0, 3][..], &min.to_be_bytes(), &preferred.to_be_bytes(), &max.to_be_bytes()].concat(),
        );
    }

    /// A whole handshake.
    fn greet(mut self, size: u64, flags: u16) -> Self {
        assert_eq!(self.hello(), 7);
        self.info_export(size, flags);
        self.reply_to_go(1, b"");
        self
    }

    fn request(&mut self) -> Request {
        assert_eq!(self.hear::<4>(), 0x2560_9513_u32.to_be_bytes());
        let [flags, command] = [self.hear(), self.hear()].map(u16::from_be_bytes);
        let [cookie, offset] = [self.hear(), self.hear()].map(u64::from_be_bytes);
        let len = u32::from_be_bytes(self.hear());
        let data = if command == WRITE { self.hear_vec(len) } else { Vec::new() };
        Request { command, flags, cookie, offset, len, data }
    }

    fn expect(&mut self, command: u16, offset: u64) -> Request {
        let request = self.request();
        assert_eq!((request.command, request.offset), (command, offset));
        request
    }

    fn reply(&mut self, cookie: u64, error: u32, data: &[u8]) {
        self.say(&[&0x6744_6698_u32.to_be_bytes(), &error.to_be_bytes(), &cookie.to_be_bytes(), data]);
    }

    /// Answers the next request, which is to be this, and well.
    fn serve(&mut self, command: u16, offset: u64) -> Request {
        let request = self.expect(command, offset);
        let data = if command == READ { vec![b'r'; request.len as usize] } else { Vec::new() };
        self.reply(request.cookie, 0, &data);
        request
    }

    /// That nothing comes for a while.
    fn expect_silence(&mut self) {
        self.0.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let error = self.0.read(&mut [0]).expect_err("something came");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        self.0.set_read_timeout(Some(SOON)).unwrap();
    }
}

/// A queue of jobs, which it knows by their numbers.
struct Queue<'a> {
    client: &'a Client,
    mailbox: Arc<Mailbox>,
    mail: RefCell<VecDeque<Mail>>,
}

/// A job's number, how it went, and its buffer.
type Mail = (u32, io::Result<()>, Vec<u8>);

impl<'a> Queue<'a> {
    fn new(client: &'a Client) -> Self {
        Self { client, mailbox: Arc::new(Mailbox::new().unwrap()), mail: RefCell::default() }
    }

    fn submit(&self, token: u32, operation: Operation, bytes: &[u8]) {
        self.client.submit(&mut vec![Job::new(token, operation, buffer(bytes, &[5, 100]), &self.mailbox)]);
    }

    fn read(&self, token: u32, offset: u64) {
        self.submit(token, Operation::Read { offset }, &[0; 512]);
    }

    fn write(&self, token: u32, offset: u64) {
        self.submit(token, Operation::Write { offset, stable: false }, &[b'w'; 512]);
    }

    fn flush(&self, token: u32) {
        self.submit(token, Operation::Flush, b"");
    }

    /// The next that is done.
    fn done(&self) -> Mail {
        let mut mail = self.mail.borrow_mut();
        if mail.is_empty() {
            mail.extend(wait_for(&self.mailbox, 1));
        }
        mail.pop_front().unwrap()
    }

    fn expect_ok(&self, token: u32) {
        let (got, result, _) = self.done();
        assert_eq!(got, token);
        result.unwrap_or_else(|e| panic!("job {token}: {e}"));
    }

    fn expect_read(&self, token: u32) {
        let (got, result, bytes) = self.done();
        assert_eq!(got, token);
        result.unwrap_or_else(|e| panic!("job {token}: {e}"));
        assert!(bytes == [b'r'; 512], "what the server said is in the buffer");
    }

    fn expect_error(&self, token: u32) -> io::Error {
        let (got, result, _) = self.done();
        assert_eq!(got, token);
        result.expect_err("it cannot be done")
    }

    fn expect_nothing(&self) {
        std::thread::sleep(Duration::from_millis(150));
        assert!(self.mail.borrow().is_empty() && self.mailbox.take().is_empty());
    }

    fn abandon(&self) {
        self.mailbox.abandon();
        self.client.abandon();
    }
}

fn impatient(handshake: u64) -> Options {
    Options { handshake: Duration::from_millis(handshake), ..Options::default() }
}

/// What becomes of a handshake that is served like this.
fn refusal(serve: impl FnOnce(&mut Peer) + Send) -> NbdError {
    let (result, _peer) = Server::new().try_connect(impatient(2000), |mut peer| {
        serve(&mut peer);
        peer
    });
    result.err().expect("a handshake that fails")
}

fn protocol(serve: impl FnOnce(&mut Peer) + Send) -> ProtocolError {
    match refusal(serve) {
        NbdError::Protocol(e) => e,
        e => panic!("{e}"),
    }
}

#[test]
fn a_server_of_something_else() {
    assert_eq!(protocol(|peer| peer.say(&[b"SSH-2.0-OpenSSH_9.2p1 Debian"])), ProtocolError::NotNbd);
    assert_eq!(protocol(|peer| peer.say(&[b"NBDMAGICIHAVEOPX\0\x03"])), ProtocolError::NotNbd);
    let oldstyle =
        |peer: &mut Peer| peer.say(&[b"NBDMAGIC", &0x0000_4202_8186_1253_u64.to_be_bytes(), &[0; 136]]);
    assert_eq!(protocol(oldstyle), ProtocolError::OldStyle);
}

#[test]
fn replies_that_cannot_be() {
    let bad_magic = protocol(|peer| {
        peer.hello();
        peer.say(&[&[7; 20]]);
    });
    assert!(matches!(bad_magic, ProtocolError::Unexpected { got: 0x0707_0707_0707_0707, .. }), "{bad_magic}");
    let other_option = protocol(|peer| {
        peer.hello();
        peer.say(&[&0x0003_e889_0455_65a9_u64.to_be_bytes(), &[0, 0, 0, 6, 0, 0, 0, 1, 0, 0, 0, 0]]);
    });
    assert!(matches!(other_option, ProtocolError::Unexpected { got: 6, .. }), "{other_option}");
    let huge = protocol(|peer| {
        peer.hello();
        peer.say(&[&0x0003_e889_0455_65a9_u64.to_be_bytes(), &[0, 0, 0, 7, 0, 0, 0, 3], &[0xff; 4]]);
    });
    assert_eq!(huge, ProtocolError::TooLong(u32::MAX));
    let endless = protocol(|peer| {
        peer.hello();
        for _ in 0..100 {
            let _ = peer.0.write_all(
                &[&0x0003_e889_0455_65a9_u64.to_be_bytes()[..], &[0, 0, 0, 7, 0, 0, 0, 3, 0, 0, 0, 2, 0, 9]]
                    .concat(),
            );
        }
    });
    assert_eq!(endless, ProtocolError::Endless);
    let unknown_reply = protocol(|peer| {
        peer.hello();
        peer.reply_to_go(77, b"");
    });
    assert!(matches!(unknown_reply, ProtocolError::Unexpected { got: 77, .. }), "{unknown_reply}");
}

#[test]
fn exports_that_cannot_be() {
    let nothing_said = protocol(|peer| {
        peer.hello();
        peer.reply_to_go(1, b"");
    });
    assert_eq!(nothing_said, ProtocolError::NoInfo);
    let short_info = protocol(|peer| {
        peer.hello();
        peer.reply_to_go(3, b"\0\0\0\0\0\0");
    });
    assert_eq!(short_info, ProtocolError::InfoLength { kind: 0, len: 6 });
    let too_large = protocol(|peer| {
        peer.hello();
        peer.info_export(1 << 63, FLUSHES);
    });
    assert_eq!(too_large, ProtocolError::Size(1 << 63));
    for (min, preferred, max) in [
        (0, 512, 4096),
        (3, 512, 4096),
        (1 << 17, 1 << 17, 1 << 20),
        (4096, 512, 4096),
        (512, 4096, 512),
        (1, 0, 1 << 20),
    ] {
        let blocks = protocol(|peer| {
            peer.hello();
            peer.info_export(SIZE, FLUSHES);
            peer.info_blocks(min, preferred, max);
            peer.reply_to_go(1, b"");
        });
        assert_eq!(blocks, ProtocolError::Blocks { min, preferred, max });
    }
    let refused = protocol(|peer| {
        peer.hello();
        peer.reply_to_go((1 << 31) + 2, b"not\x1b[31m for you");
    });
    assert!(!refused.to_string().contains('\x1b') && refused.to_string().contains("for you"), "{refused}");
}

#[test]
fn a_server_that_does_not_know_go() {
    let (result, mut peer) = Server::new().try_connect(impatient(2000), |mut peer| {
        assert_eq!(peer.hello(), 7);
        peer.reply_to_go((1 << 31) + 1, b"");
        assert_eq!(peer.option(), 1);
        peer.say(&[&SIZE.to_be_bytes(), &FLUSHES.to_be_bytes()]);
        peer
    });
    let (client, export) = result.unwrap();
    assert_eq!((export.size, export.can_flush(), export.can_discard()), (SIZE, true, false));
    let queue = Queue::new(&client);
    queue.read(1, 512);
    peer.serve(READ, 512);
    queue.expect_read(1);
}

#[test]
fn a_server_that_says_nothing_or_little() {
    let start = Instant::now();
    let (result, _peer) = Server::new().try_connect(impatient(300), |peer| peer);
    assert!(matches!(result.err(), Some(NbdError::Silent(_))));
    let (result, ()) = Server::new().try_connect(impatient(300), |mut peer| {
        for byte in b"NBDMAGICIHAVEOPT" {
            std::thread::sleep(Duration::from_millis(50));
            let _ = peer.0.write_all(&[*byte]);
        }
    });
    assert!(matches!(result.err(), Some(NbdError::Silent(_))));
    assert!(start.elapsed() < Duration::from_secs(5));
    let (result, ()) = Server::new().try_connect(impatient(2000), |mut peer| peer.say(&[b"NBDMAGIC"]));
    assert!(matches!(result.err(), Some(NbdError::Closed)));
}

#[test]
fn a_wrong_reply_ends_the_connection_and_no_job() {
    type Wrong = fn(&mut Peer, &Request);
    let wrongs: [Wrong; 6] = [
        // Another's cookie.
        |peer, request| peer.reply(request.cookie + 1000, 0, b""),
        // One that will be given out next.
        |peer, request| peer.reply(request.cookie + 1, 0, &[0; 512]),
        // Not a reply.
        |peer, _| peer.say(&[&[0x55; 16]]),
        // A structured one, which nobody asked for.
        |peer, request| {
            peer.say(&[
                &0x668e_33ef_u32.to_be_bytes(),
                &[0, 1, 0, 0],
                &request.cookie.to_be_bytes(),
                &[0; 4],
            ]);
        },
        // Cut in its header.
        |peer, _| peer.say(&[&0x6744_6698_u32.to_be_bytes(), &[0; 3]]),
        // Cut in its data.
        |peer, request| peer.reply(request.cookie, 0, &[b'x'; 300]),
    ];
    let server = Server::new();
    for (i, wrong) in wrongs.iter().enumerate() {
        let (client, mut peer) = server.connect(Options::default());
        let queue = Queue::new(&client);
        queue.read(1, 1024);
        let request = peer.expect(READ, 1024);
        wrong(&mut peer, &request);
        if i >= 4 {
            drop(peer);
        } else {
            peer.expect_end();
        }
        let mut peer = server.accept_again();
        peer.serve(READ, 1024);
        queue.expect_read(1);
    }
}

#[test]
fn a_request_is_answered_once() {
    let server = Server::new();
    let (client, mut peer) = server.connect(Options::default());
    let queue = Queue::new(&client);
    queue.write(1, 0);
    queue.write(2, 512);
    let first = peer.serve(WRITE, 0);
    queue.expect_ok(1);
    peer.expect(WRITE, 512);
    peer.reply(first.cookie, 0, b"");
    peer.expect_end();
    // What was acknowledged is not sent again.
    let mut peer = server.accept_again();
    assert_eq!(peer.serve(WRITE, 512).data, [b'w'; 512]);
    queue.expect_ok(2);
    peer.expect_silence();
}

#[test]
fn replies_in_any_order_and_in_any_pieces() {
    let server = Server::new();
    let (client, mut peer) = server.connect(Options::default());
    let queue = Queue::new(&client);
    let all: Vec<_> =
        (0..40).map(|i| (Operation::Read { offset: i * 512 }, buffer(&[0; 512], &[7, 300]))).collect();
    let bytes = std::thread::scope(|scope| {
        let jobs = scope.spawn(|| run_all(&*client, all));
        let requests: Vec<_> = (0..40).map(|_| peer.request()).collect();
        let reply = |request: &Request| {
            let magic = 0x6744_6698_u32.to_be_bytes();
            [&magic[..], &[0; 4], &request.cookie.to_be_bytes(), &[(request.offset / 512) as u8 + 1; 512]]
                .concat()
        };
        let stream: Vec<u8> = requests.iter().rev().flat_map(reply).collect();
        // In pieces of all lengths, some of which end in a header.
        let (mut rest, mut len) = (&stream[..], 1);
        while !rest.is_empty() {
            let (piece, others) = rest.split_at(len.min(rest.len()));
            peer.say(&[piece]);
            (rest, len) = (others, len % 700 + 13);
        }
        jobs.join().unwrap()
    });
    for (i, (result, bytes)) in bytes.into_iter().enumerate() {
        result.unwrap();
        assert!(bytes == [i as u8 + 1; 512], "read {i}");
    }
    // And errors have no data behind them.
    queue.read(1, 0);
    queue.read(2, 512);
    let [first, second] = [peer.request(), peer.request()];
    peer.reply(first.cookie, 5, b"");
    peer.reply(second.cookie, 0, &[b'r'; 512]);
    assert_eq!(queue.expect_error(1).raw_os_error(), Some(libc::EIO));
    queue.expect_read(2);
}

#[test]
fn errors_are_the_protocol_s_own() {
    let server = Server::new();
    let (client, mut peer) = server.connect(Options::default());
    let queue = Queue::new(&client);
    for (wire, errno) in
        [(1, libc::EPERM), (12, libc::ENOMEM), (28, libc::ENOSPC), (75, libc::EOVERFLOW), (9999, libc::EIO)]
    {
        queue.write(1, 0);
        let request = peer.expect(WRITE, 0);
        peer.reply(request.cookie, wire, b"");
        assert_eq!(queue.expect_error(1).raw_os_error(), Some(errno));
    }
    // Nothing was said of these.
    queue.submit(2, Operation::Discard(Range { offset: 0, len: 512 }), b"");
    assert_eq!(queue.expect_error(2).kind(), io::ErrorKind::Unsupported);
}

#[test]
fn a_server_that_shuts_down_is_asked_again_later() {
    let server = Server::new();
    let (client, mut peer) = server.connect(Options::default());
    let queue = Queue::new(&client);
    queue.write(1, 0);
    let request = peer.expect(WRITE, 0);
    peer.reply(request.cookie, ESHUTDOWN, b"");
    peer.expect_end();
    server.accept_again().serve(WRITE, 0);
    queue.expect_ok(1);
}

#[test]
fn jobs_wait_for_the_same_export() {
    let server = Server::new();
    let (client, mut peer) = server.connect(Options::default());
    let queue = Queue::new(&client);
    queue.write(1, 0);
    peer.expect(WRITE, 0);
    drop(peer);
    // Another size; read-only; without flushes: none of these is the disk that the guest knows.
    server.accept().greet(SIZE / 2, FLUSHES).expect_end();
    server.accept().greet(SIZE, FLUSHES | 2).expect_end();
    server.accept().greet(SIZE, 1).expect_end();
    queue.write(2, 512);
    let mut peer = server.accept_again();
    peer.serve(WRITE, 0);
    peer.serve(WRITE, 512);
    queue.expect_ok(1);
    queue.expect_ok(2);
}

#[test]
fn patience_has_an_end() {
    for patience in [0, 2000] {
        let server = Server::new();
        let patience = Duration::from_millis(patience);
        let (client, mut peer) = server.connect(Options { reconnect: patience, ..Options::default() });
        let queue = Queue::new(&client);
        queue.read(1, 0);
        peer.expect(READ, 0);
        let start = Instant::now();
        drop((peer, server));
        assert_eq!(queue.expect_error(1).raw_os_error(), Some(libc::ETIMEDOUT));
        assert!(start.elapsed() >= patience, "not before its time: {:?}", start.elapsed());
        assert!(start.elapsed() < patience + Duration::from_secs(3), "but then: {:?}", start.elapsed());
        // From now on nothing waits.
        let start = Instant::now();
        queue.write(2, 0);
        queue.expect_error(2);
        assert!(start.elapsed() < Duration::from_millis(1500), "{:?}", start.elapsed());
    }
}

#[test]
fn after_patience_ended_it_comes_back() {
    let server = Server::new();
    let (client, peer) = server.connect(Options { reconnect: Duration::ZERO, ..Options::default() });
    let queue = Queue::new(&client);
    drop(peer);
    let mut peer = server.accept_again();
    // The server has said all it says; that the client has heard it is seen by a job that goes well.
    let deadline = Instant::now() + SOON;
    loop {
        queue.read(1, 0);
        std::thread::sleep(Duration::from_millis(50));
        if queue.mailbox.take().is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "it does not come back");
    }
    peer.serve(READ, 0);
    queue.expect_read(1);
}

#[test]
fn a_silent_server_is_left_if_that_is_asked_for() {
    let server = Server::new();
    let (client, mut peer) =
        server.connect(Options { silence: Some(Duration::from_millis(300)), ..Options::default() });
    let queue = Queue::new(&client);
    // Nothing is asked: it may be silent.
    std::thread::sleep(Duration::from_millis(500));
    queue.read(1, 0);
    peer.serve(READ, 0);
    queue.expect_read(1);
    queue.read(2, 512);
    peer.expect(READ, 512);
    peer.expect_end();
    server.accept_again().serve(READ, 512);
    queue.expect_read(2);
}

#[test]
fn a_stable_write_is_written_again_if_it_was_not_flushed() {
    let server = Server::new();
    let (client, mut peer) = server.connect(Options::default());
    let queue = Queue::new(&client);
    queue.submit(1, Operation::Write { offset: 0, stable: true }, &[b's'; 512]);
    assert_eq!(peer.serve(WRITE, 0).flags, 0, "the server has no FUA");
    peer.expect(FLUSH, 0);
    queue.expect_nothing();
    drop(peer);
    let mut peer = server.accept_again();
    assert_eq!(peer.serve(WRITE, 0).data, [b's'; 512]);
    peer.serve(FLUSH, 0);
    queue.expect_ok(1);
}

#[test]
fn a_flush_in_flight_is_asked_for_again() {
    let server = Server::new();
    let (client, mut peer) = server.connect(Options::default());
    let queue = Queue::new(&client);
    queue.write(1, 0);
    peer.serve(WRITE, 0);
    queue.expect_ok(1);
    queue.flush(2);
    peer.expect(FLUSH, 0);
    drop(peer);
    server.accept_again().serve(FLUSH, 0);
    queue.expect_ok(2);
}

#[test]
fn a_flush_fails_after_a_loss_if_that_is_asked_for() {
    let server = Server::new();
    let (client, mut peer) = server.connect(Options { fail_flush_after_loss: true, ..Options::default() });
    let queue = Queue::new(&client);
    queue.write(1, 0);
    peer.serve(WRITE, 0);
    queue.expect_ok(1);
    queue.flush(2);
    peer.serve(FLUSH, 0);
    queue.expect_ok(2);
    drop(peer);
    // All was flushed: nothing is in doubt.
    let mut peer = server.accept_again();
    queue.flush(3);
    peer.serve(FLUSH, 0);
    queue.expect_ok(3);
    queue.write(4, 0);
    peer.serve(WRITE, 0);
    queue.expect_ok(4);
    drop(peer);
    let mut peer = server.accept_again();
    queue.flush(5);
    assert_eq!(queue.expect_error(5).raw_os_error(), Some(libc::EIO));
    queue.flush(6);
    peer.serve(FLUSH, 0);
    queue.expect_ok(6);
}

#[test]
fn an_abandoned_job_is_done_without_a_server() {
    let server = Server::new();
    let (client, peer) = server.connect(Options::default());
    let (stopped, other) = (Queue::new(&client), Queue::new(&client));
    drop(peer);
    stopped.write(1, 0);
    other.write(2, 512);
    stopped.expect_nothing();
    stopped.abandon();
    stopped.expect_error(1);
    server.accept_again().serve(WRITE, 512);
    other.expect_ok(2);
}

#[test]
fn what_is_written_after_an_abandoned_write_stays() {
    let server = Server::new();
    let (client, mut peer) = server.connect(Options::default());
    let (stopped, other) = (Queue::new(&client), Queue::new(&client));
    stopped.write(1, 0);
    stopped.read(2, 512);
    let [write, read] = [peer.request(), peer.request()];
    // The read's data have begun to come.
    peer.say(&[&0x6744_6698_u32.to_be_bytes(), &[0; 4], &read.cookie.to_be_bytes(), &[b'x'; 100]]);
    stopped.expect_nothing();
    stopped.abandon();
    let done = [stopped.done().0, stopped.done().0];
    assert!(done == [1, 2] || done == [2, 1]);
    // The server may still do the first one: the next has to come after it.
    other.write(3, 0);
    peer.expect_silence();
    peer.say(&[&[b'x'; 412]]);
    peer.expect_silence();
    peer.reply(write.cookie, 0, b"");
    peer.serve(WRITE, 0);
    other.expect_ok(3);
}

#[test]
fn a_write_abandoned_half_sent_ends_the_connection() {
    let server = Server::new();
    let (client, mut peer) = server.connect(Options::default());
    let (stopped, other) = (Queue::new(&client), Queue::new(&client));
    let operation = Operation::Write { offset: 0, stable: false };
    // More than a socket holds.
    stopped.submit(1, operation, &vec![b'w'; 1 << 20]);
    stopped.expect_nothing();
    other.read(2, 4096);
    stopped.abandon();
    stopped.expect_error(1);
    let mut rest = Vec::new();
    let _ = peer.0.read_to_end(&mut rest);
    assert!((28..1 << 20).contains(&rest.len()), "{} bytes", rest.len());
    server.accept_again().serve(READ, 4096);
    other.expect_read(2);
}

#[test]
fn a_disk_that_has_grown_is_used_whole() {
    let server = Server::new();
    let (client, mut peer) = server.connect(Options::default());
    let queue = Queue::new(&client);
    let refresh = |size, flags| {
        std::thread::scope(|scope| {
            let next = scope.spawn(|| server.accept().greet(size, flags));
            (client.refresh(), next.join().unwrap())
        })
    };
    // As large as it was: all stays as it is.
    let (export, unused) = refresh(SIZE, FLUSHES);
    assert_eq!(export.unwrap().size, SIZE);
    unused.expect_end();
    // Another disk.
    let (error, unused) = refresh(2 * SIZE, 1);
    assert!(matches!(error, Err(NbdError::Changed(_))));
    unused.expect_end();

    queue.write(1, 0);
    peer.serve(WRITE, 0);
    queue.expect_ok(1);
    queue.write(2, 512);
    let under_way = peer.expect(WRITE, 512);
    let (export, mut next) = refresh(2 * SIZE, FLUSHES);
    assert_eq!(export.unwrap().size, 2 * SIZE);
    queue.read(3, SIZE);
    // What is under way ends where it was begun, and is flushed there.
    next.expect_silence();
    peer.reply(under_way.cookie, 0, b"");
    queue.expect_ok(2);
    peer.serve(FLUSH, 0);
    assert_eq!(peer.request().command, 2);
    peer.expect_end();
    next.serve(READ, SIZE);
    queue.expect_read(3);
    // And from now on that is its size.
    queue.read(4, 0);
    next.expect(READ, 0);
    drop(next);
    server.accept_again().expect_end();
    server.accept().greet(2 * SIZE, FLUSHES).serve(READ, 0);
    queue.expect_read(4);
}

/// A guest's buffer that it has taken away since.
fn lost_buffer(len: u64) -> Kept {
    let file = tempfile::tempfile().unwrap();
    file.set_len(len).unwrap();
    let region = Mapping::region(file.try_clone().unwrap().into(), 0, len, Gpa(0), FrontendVa(0)).unwrap();
    let mut list = ScatterList::with_capacity(1);
    list.bind(&Arc::new(MemoryTable::new(vec![region]).unwrap()));
    list.push(BusAddr(0), len as u32, Access::WRITE).unwrap();
    let mut kept = Kept::default();
    list.keep(0..1, 0, len as usize, &mut kept);
    file.set_len(0).unwrap();
    kept
}

#[test]
fn memory_that_is_taken_away_costs_its_own_jobs() {
    let server = Server::new();
    let (client, mut peer) = server.connect(Options::default());
    let (queue, robbed) = (Queue::new(&client), Queue::new(&client));
    let job = |token, operation| Job::new(token, operation, lost_buffer(8192), &robbed.mailbox);
    let good = |token, offset| {
        let operation = Operation::Write { offset, stable: false };
        Job::new(token, operation, buffer(&[b'w'; 512], &[]), &queue.mailbox)
    };
    let all = [
        good(1, 0),
        job(2, Operation::Write { offset: 8192, stable: false }),
        job(3, Operation::Read { offset: 16384 }),
        good(4, 512),
    ];
    client.submit(&mut all.into());
    peer.serve(WRITE, 0);
    queue.expect_ok(1);
    peer.serve(READ, 16384);
    peer.serve(WRITE, 512);
    queue.expect_ok(4);
    // What is in these buffers cannot be looked at.
    let mut done = robbed.mailbox.take();
    done.sort_by_key(|done| done.token);
    let errors: Vec<_> =
        done.iter().map(|done| (done.token, done.result.as_ref().unwrap_err().raw_os_error())).collect();
    assert_eq!(errors, [(2, Some(libc::EFAULT)), (3, Some(libc::EFAULT))]);
}

#[test]
fn a_client_says_goodbye_and_takes_no_job_along() {
    let server = Server::new();
    let (client, mut peer) = server.connect(Options::default());
    drop(client);
    assert_eq!(peer.request().command, 2);
    peer.expect_end();
    let (client, mut peer) = server.connect(Options::default());
    let queue = Queue::new(&client);
    queue.read(1, 0);
    peer.expect(READ, 0);
    let mailbox = Arc::clone(&queue.mailbox);
    drop(client);
    assert!(wait_for(&mailbox, 1)[0].1.is_err());
}
