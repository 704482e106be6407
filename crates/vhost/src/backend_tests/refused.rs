//! What no session here can do is refused, each in the form that its answer has.

use super::*;

const SET_VRING_ENDIAN: u32 = 23;
const CREATE_CRYPTO_SESSION: u32 = 26;
const CLOSE_CRYPTO_SESSION: u32 = 27;
const GET_SHARED_OBJECT: u32 = 41;
const GET_SHMEM_CONFIG: u32 = 44;

/// [VU-BE-set-vring-endian-00] Rings are little-endian.
#[test]
fn no_other_byte_order() {
    let mut front = FrontEnd::new();
    for order in [0, 1] {
        let error = front.refused(SET_VRING_ENDIAN, &words32(&[0, order]), vec![]);
        assert!(matches!(error, RequestError::CrossEndian), "{error}");
    }
    front.send_u64(SET_PROTOCOL_FEATURES, REPLY_ACK);
    assert_ne!(front.ack(SET_VRING_ENDIAN, &words32(&[0, 1]), vec![]), 0);
    assert_eq!(front.ask_u64(GET_PROTOCOL_FEATURES) & pf::CROSS_ENDIAN, 0);
}

/// [VU-BE-gpu-set-socket-00] [VU-BE-close-crypto-session-00] Other devices' requests fail, and end nothing if an answer
/// is wanted.
#[test]
fn requests_of_other_devices() {
    let mut front = FrontEnd::new();
    front.send_u64(SET_PROTOCOL_FEATURES, REPLY_ACK);
    for (request, payload, fds) in [
        (GPU_SET_SOCKET, vec![], vec![event()]),
        (CREATE_CRYPTO_SESSION, vec![0; 64], vec![]),
        (CLOSE_CRYPTO_SESSION, words64(&[0]), vec![]),
    ] {
        assert_ne!(front.ack(request, &payload, fds), 0, "{}", name(request));
        let error = front.handle(request, false, &payload, vec![]).expect_err("not supported");
        assert!(matches!(error, SessionError::Message(MessageError::Unsupported(r)) if r == request));
    }
    assert_eq!(front.ask_u64(GET_PROTOCOL_FEATURES) & (pf::CRYPTO_SESSION | pf::SHMEM), 0);
    let error = front.refused(GET_SHMEM_CONFIG, &[], vec![]);
    assert!(matches!(error, RequestError::NotNegotiated), "{error}");
}

/// [VU-BE-get-shared-object-00] [VU-BE-get-shared-object-01] A device that has none says so by an answer without a
/// file descriptor, negotiated or not.
#[test]
fn no_shared_object() {
    let mut front = FrontEnd::with_more(pf::SHARED_OBJECT, 0);
    assert!(front.ask(GET_SHARED_OBJECT, &[7; 16]).is_empty());
    front.send_u64(SET_PROTOCOL_FEATURES, 0);
    assert!(front.ask(GET_SHARED_OBJECT, &[7; 16]).is_empty());
}

/// [VU-BE-in-band-notifications-01] Features that mean nothing alone are not taken alone, and without a way to tell
/// it the session ends.
#[test]
fn features_that_need_others() {
    let (signals, base) = (pf::INBAND_NOTIFICATIONS, pf::GET_VRING_BASE_INFLIGHT);
    let more = base | pf::INFLIGHT_SHMFD;
    for (features, is_good) in [
        (signals, false),
        (signals | REPLY_ACK, false),
        (signals | pf::BACKEND_REQ, false),
        (signals | REPLY_ACK | pf::BACKEND_REQ, true),
        (base, false),
        (base | pf::INFLIGHT_SHMFD, true),
        (pf::INFLIGHT_SHMFD, true),
    ] {
        let mut front = FrontEnd::of(Fake { more, ..Fake::default() });
        if is_good {
            front.send_u64(SET_PROTOCOL_FEATURES, features);
            continue;
        }
        let error = front.refused(SET_PROTOCOL_FEATURES, &words64(&[features]), vec![]);
        assert!(matches!(error, RequestError::Features(_)), "{features:#x}: {error}");
        assert_eq!(front.session.protocol_features, 0, "nothing is acked");
    }
}
