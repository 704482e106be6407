//! TLS on a socket that does not block, and whom it trusts.
//!
//! A directory of certificates has the files that QEMU and libnbd know: `ca-cert.pem`, who may have signed the server's; and
//! `client-cert.pem` with `client-key.pem`, if the server wants to know its client.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

use ringway_memory::{GuestBuf, GuestSlice};
use rustix::net::{RecvFlags, SendFlags};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::{NbdError, uri};

/// Bytes copied at once, as long as a record of TLS.
const CHUNK: usize = 16 << 10;

/// A session of TLS, and room to copy through: ciphers do not work on memory that others write to.
pub(super) struct Session {
    connection: ClientConnection,
    chunk: Box<[u8; CHUNK]>,
}

impl Session {
    /// One that has nothing said yet.
    pub(super) fn new(tls: &uri::Tls) -> Result<Self, NbdError> {
        let name = ServerName::try_from(tls.hostname.clone())
            .map_err(|_| NbdError::Tls(format!("{:?} is not a name of a server", tls.hostname)))?;
        let connection = ClientConnection::new(Arc::new(config(tls.certificates.as_deref())?), name);
        let connection = connection.map_err(|e| NbdError::Tls(e.to_string()))?;
        Ok(Self { connection, chunk: Box::new([0; CHUNK]) })
    }

    pub(super) fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// Whether it has something for a socket that took nothing more.
    pub(super) fn wants_write(&self) -> bool {
        self.connection.wants_write()
    }

    /// Sends what is ready to be sent, as much of it as the socket takes.
    pub(super) fn flush(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        while self.connection.wants_write() {
            match self.connection.write_tls(&mut Raw(socket)) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Receives what there is, and answers what is TLS's own. Returns how many bytes of the socket, 0 at its end.
    pub(super) fn fill(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let n = self.connection.read_tls(&mut Raw(socket))?;
        let processed = self.connection.process_new_packets();
        self.flush(socket)?;
        processed.map_err(io::Error::other)?;
        Ok(n)
    }

    /// As [`ringway_memory::io::send`].
    pub(super) fn send(&mut self, socket: BorrowedFd<'_>, pieces: &[GuestSlice<'_>]) -> io::Result<usize> {
        let mut sent = 0;
        let mut left = GuestBuf::new(pieces);
        while !left.is_empty() {
            let n = left.read(&mut *self.chunk);
            let taken = self.connection.writer().write(&self.chunk[..n])?;
            sent += taken;
            left = left.advance(taken);
            if taken < n {
                break;
            }
        }
        self.flush(socket)?;
        if sent == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(sent) }
    }

    /// As [`ringway_memory::io::receive`].
    pub(super) fn receive(&mut self, socket: BorrowedFd<'_>, pieces: &[GuestSlice<'_>]) -> io::Result<usize> {
        loop {
            let received = self.take(GuestBuf::new(pieces))?;
            match received {
                Some(n) => return Ok(n),
                None if self.fill(socket)? == 0 => return Ok(0),
                None => {}
            }
        }
    }

    /// Takes what was received before; `None` if that is nothing.
    fn take(&mut self, mut to: GuestBuf<'_>) -> io::Result<Option<usize>> {
        let mut taken = 0;
        while !to.is_empty() {
            let most = to.len().min(CHUNK);
            match self.connection.reader().read(&mut self.chunk[..most]) {
                Ok(0) => return Ok(Some(taken)),
                Ok(n) => {
                    to.write(&self.chunk[..n]);
                    to = to.advance(n);
                    taken += n;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
        }
        Ok((taken > 0).then_some(taken))
    }
}

/// A socket as TLS wants it.
struct Raw<'a>(BorrowedFd<'a>);

impl Read for Raw<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::net::recv(self.0.as_fd(), to, RecvFlags::DONTWAIT)?.0)
    }
}

impl Write for Raw<'_> {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        Ok(rustix::net::send(self.0.as_fd(), from, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whom to trust, and who we are. Read anew for each connection: certificates are renewed.
fn config(dir: Option<&Path>) -> Result<ClientConfig, NbdError> {
    let mut roots = RootCertStore::empty();
    match dir {
        Some(dir) => {
            let path = dir.join("ca-cert.pem");
            for certificate in certificates(&path)? {
                roots.add(certificate).map_err(|e| bad(&path, &e))?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err(NbdError::Tls(
            "no authority to trust: give tls-certificates=DIR with a ca-cert.pem".to_owned(),
        ));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| NbdError::Tls(e.to_string()))?
        .with_root_certificates(roots);
    let path = dir.map(|dir| dir.join("client-cert.pem")).filter(|path| path.exists());
    let Some(path) = path else { return Ok(builder.with_no_client_auth()) };
    let key_path = path.with_file_name("client-key.pem");
    let key = PrivateKeyDer::from_pem_file(&key_path).map_err(|e| bad(&key_path, &e))?;
    builder.with_client_auth_cert(certificates(&path)?, key).map_err(|e| bad(&path, &e))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, NbdError> {
    let all = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let all = all.map_err(|e| bad(path, &e))?;
    if all.is_empty() { Err(bad(path, &"it has no certificate")) } else { Ok(all) }
}

fn bad(path: &Path, error: &dyn std::fmt::Display) -> NbdError {
    NbdError::Certificates { path: path.to_owned(), error: error.to_string() }
}
