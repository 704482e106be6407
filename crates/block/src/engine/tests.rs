use std::fs::File;
use std::time::Instant;

use ringway_memory::{Access, BusAddr, FrontendVa, Gpa, Mapping, MemoryTable, ScatterList};

use super::*;
use crate::image::{Cache, Image, ImageSpec, OpenOptions};

const LEN: u64 = 8192;

fn kept() -> Kept {
    let file = tempfile::tempfile().unwrap();
    file.set_len(LEN).unwrap();
    let region = Mapping::region(file.into(), 0, LEN, Gpa(0), FrontendVa(0)).unwrap();
    let mut list = ScatterList::with_capacity(1);
    list.bind(&Arc::new(MemoryTable::new(vec![region]).unwrap()));
    list.push(BusAddr(0), LEN as u32, Access::WRITE).unwrap();
    let mut kept = Kept::default();
    list.keep(0..1, 0, LEN as usize, &mut kept);
    kept
}

fn run(engine: &mut Engine, operation: Operation) -> io::Result<()> {
    engine.begin(0, operation, kept());
    engine.submit();
    let (mut finished, until) = (Vec::new(), Instant::now() + Duration::from_secs(10));
    while finished.is_empty() {
        assert!(Instant::now() < until, "{operation:?} is not done");
        engine.sleep(Some(Duration::from_millis(10)));
        engine.reap(&mut finished);
    }
    finished.remove(0).result
}

#[test]
fn a_file_cut_short_does_not_grow() {
    // Where tests are built is a disk; elsewhere files may be in memory, and reached in another way.
    let here = std::env::current_exe().unwrap();
    let directory = tempfile::tempdir_in(here.parent().unwrap()).unwrap();
    let path = directory.path().join("disk");
    for cache in [Cache::Direct, Cache::Writeback] {
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        let options = OpenOptions { cache, ..OpenOptions::default() };
        let image = Image::open(&ImageSpec::File(path.clone()), &options).unwrap();
        let (mut engine, failure) = Engine::new(image.way(), 8, &Arc::new(Mailbox::new().unwrap())).unwrap();
        assert!(failure.is_none(), "{failure:?}");
        let write = |offset| Operation::Write { offset, stable: false };
        run(&mut engine, write((1 << 20) - LEN)).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(3 * LEN).unwrap();
        for offset in [3 * LEN - 4096, 3 * LEN, (1 << 20) - LEN] {
            for operation in [write(offset), Operation::Read { offset }] {
                let result = run(&mut engine, operation);
                assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EIO), "{cache:?} {operation:?}");
            }
        }
        run(&mut engine, write(2 * LEN)).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 3 * LEN, "{cache:?}");
    }
}
