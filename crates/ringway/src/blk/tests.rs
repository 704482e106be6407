//! Disks of which one has storage that does not answer.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ringway_block::disk::DiskDevice;
use ringway_block::image::{Image, ImageSpec, OpenOptions, Way};
use ringway_block::job::{Executor, Job};
use ringway_testkit::frontend::wire::feature;
use ringway_testkit::frontend::{BlkFrontend, BlkOptions, DiskRequest, Layout};
use ringway_vhost::endpoint::Endpoint;

use super::disk::Parts;
use super::plan::{DiskPlan, Plan};
use super::server::BlkServer;
use crate::args::DiskOptions;
use crate::place::Place;
use crate::serve::Server;

const FEATURES: u64 = feature::VERSION_1 | feature::BLK_FLUSH;
const SOON: Duration = Duration::from_secs(5);

/// Storage that keeps jobs until it answers again.
struct Storage(Mutex<Option<Vec<Job>>>);

impl Storage {
    fn hang(&self) {
        self.0.lock().unwrap().get_or_insert_default();
    }

    /// Answers all that waits, and at once from now on; how much waited.
    fn answer(&self) -> usize {
        let waiting = self.0.lock().unwrap().take().unwrap_or_default();
        let count = waiting.len();
        for job in waiting {
            job.done(Ok(()));
        }
        count
    }
}

impl Executor for Storage {
    fn submit(&self, jobs: &mut Vec<Job>) {
        match &mut *self.0.lock().unwrap() {
            Some(waiting) => waiting.append(jobs),
            None => jobs.drain(..).for_each(|job| job.done(Ok(()))),
        }
    }
}

fn disk(name: &str, directory: &Path) -> DiskPlan {
    let place = Place::Listen(directory.join(name));
    DiskPlan { name: name.into(), place, image: ImageSpec::Null(1 << 20), options: DiskOptions::default() }
}

/// Two disks that run, the first on this storage.
fn serve(directory: &Path, storage: &Arc<Storage>) -> BlkServer {
    let disks = vec![disk("a", directory), disk("b", directory)];
    let plan = Plan { disks, busy_poll: Duration::ZERO };
    let parts = |disk: &DiskPlan| {
        let image = Image::open(&disk.image, &OpenOptions::default()).unwrap();
        let mut device: DiskDevice = disk.device(&image, plan.busy_poll).unwrap();
        if disk.name == "a" {
            device.set_way(Way::Elsewhere(Arc::clone(storage) as _));
        }
        let source = disk.place.open("disk").unwrap();
        Box::new(Parts { endpoint: Endpoint::new(disk.label(), source, device), image })
    };
    let parts = plan.disks.iter().map(parts).collect();
    let mut server = BlkServer::new(&plan, parts).unwrap();
    server.go();
    server
}

fn up(directory: &Path, name: &str) -> BlkFrontend {
    BlkFrontend::up(directory.join(name), FEATURES, BlkOptions::default()).unwrap()
}

/// Makes a request and does not wait for its end.
fn ask(guest: &mut BlkFrontend) {
    guest.enqueue(0, &DiskRequest::flush(), &Layout::default()).unwrap();
    guest.flush_queue(0).unwrap();
}

/// Waits until the storage has got the request.
fn await_job(storage: &Storage) {
    let deadline = Instant::now() + SOON;
    while storage.0.lock().unwrap().as_ref().is_none_or(Vec::is_empty) {
        assert!(Instant::now() < deadline, "no request arrives");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Others serve and attach meanwhile, even while its front-end waits for its ring to stop.
#[test]
fn a_disk_that_hangs_delays_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let storage = Arc::new(Storage(Mutex::default()));
    let mut server = serve(directory.path(), &storage);
    let mut a = up(directory.path(), "a");
    a.request(&DiskRequest::flush()).unwrap();
    storage.hang();
    ask(&mut a);
    await_job(&storage);
    std::thread::scope(|scope| {
        let stop = scope.spawn(|| a.stop_ring(0).map(drop));
        std::thread::sleep(Duration::from_millis(50));
        for _ in 0..3 {
            let begin = Instant::now();
            let mut b = up(directory.path(), "b");
            assert_eq!(b.request(&DiskRequest::flush()).unwrap().status, 0);
            assert!(begin.elapsed() < Duration::from_secs(1));
        }
        assert!(!stop.is_finished());
        assert_eq!(storage.answer(), 1);
        stop.join().unwrap().unwrap();
    });
    server.end();
}

/// It cannot be handed over: the reason names it. All go on then, the disk itself when its storage answers.
#[test]
fn a_disk_that_hangs_is_not_handed_over() {
    let directory = tempfile::tempdir().unwrap();
    let storage = Arc::new(Storage(Mutex::default()));
    let mut server = serve(directory.path(), &storage);
    let [mut a, mut b] = ["a", "b"].map(|name| up(directory.path(), name));
    a.request(&DiskRequest::flush()).unwrap();
    storage.hang();
    ask(&mut a);
    await_job(&storage);
    let error = server.suspend().err().expect("a request is under way").to_string();
    assert!(error.contains("disk a"), "{error}");
    assert_eq!(b.request(&DiskRequest::flush()).unwrap().status, 0);
    assert_eq!(storage.answer(), 1);
    assert_eq!(a.answers(0, SOON).unwrap()[0].1.status, 0);
    assert_eq!(a.request(&DiskRequest::flush()).unwrap().status, 0);

    // Now it can be; and if there is another reason not to, all go on again.
    let held = server.suspend().unwrap();
    server.resume(held);
    for guest in [&mut a, &mut b] {
        assert_eq!(guest.request(&DiskRequest::flush()).unwrap().status, 0);
    }
    assert!(
        server.counters().contains("disk a: read 0 requests 0 bytes, written 0 requests 0 bytes, flushes 4,")
    );
}

/// The end of the program does not wait for it for long.
#[test]
fn a_disk_that_hangs_does_not_keep_the_program() {
    let directory = tempfile::tempdir().unwrap();
    let storage = Arc::new(Storage(Mutex::default()));
    let mut server = serve(directory.path(), &storage);
    let mut a = up(directory.path(), "a");
    storage.hang();
    ask(&mut a);
    await_job(&storage);
    let begin = Instant::now();
    server.end();
    assert!(begin.elapsed() < Duration::from_secs(4));
    storage.answer();
}
