//! The behaviour that both disks share, and what can be tested on the operating system's alone.

use std::io::ErrorKind;
use std::path::Path;

use forebay::disk::{Disk, DiskFile, OsDisk, SimDisk};

/// Both disks, each with a directory to work in.
fn on_both(test: impl Fn(&dyn Disk, &Path)) {
    let dir = tempfile::tempdir().unwrap();
    test(&OsDisk, &dir.path().join("a/b"));
    test(&SimDisk::new(), Path::new("/a/b"));
}

fn content(file: &dyn DiskFile) -> Vec<u8> {
    let mut all = vec![0; usize::try_from(file.len().unwrap()).unwrap() + 10];
    let n = file.read_at(&mut all, 0).unwrap();
    all.truncate(n);
    all
}

#[test]
fn files_are_made_found_moved_and_removed() {
    on_both(|disk, dir| {
        assert_eq!(disk.list(dir).unwrap_err().kind(), ErrorKind::NotFound);
        disk.create_dir_all(dir).unwrap();
        disk.create_dir_all(dir).unwrap();
        assert!(disk.list(dir).unwrap().is_empty());
        assert_eq!(disk.open(&dir.join("x")).err().unwrap().kind(), ErrorKind::NotFound);

        let file = disk.create_new(&dir.join("x")).unwrap();
        assert_eq!(disk.create_new(&dir.join("x")).err().unwrap().kind(), ErrorKind::AlreadyExists);
        file.write_all_at(b"world", 6).unwrap();
        file.write_all_at(b"hello", 0).unwrap();
        file.sync_data().unwrap();
        assert_eq!(content(file.as_ref()), b"hello\0world");
        let mut middle = [0; 3];
        assert_eq!(file.read_at(&mut middle, 4).unwrap(), 3);
        assert_eq!(&middle, b"o\0w");
        assert_eq!(file.read_at(&mut middle, 10).unwrap(), 1);
        assert_eq!(file.read_at(&mut middle, 99).unwrap(), 0);

        disk.create_new(&dir.join("y")).unwrap();
        disk.rename(&dir.join("x"), &dir.join("y")).unwrap();
        disk.sync_dir(dir).unwrap();
        assert_eq!(disk.list(dir).unwrap(), ["y"]);
        assert_eq!(content(disk.open(&dir.join("y")).unwrap().as_ref()), b"hello\0world");
        assert_eq!(disk.rename(&dir.join("x"), &dir.join("z")).unwrap_err().kind(), ErrorKind::NotFound);

        disk.remove(&dir.join("y")).unwrap();
        assert_eq!(disk.remove(&dir.join("y")).unwrap_err().kind(), ErrorKind::NotFound);
        assert!(disk.list(dir).unwrap().is_empty());
        // Whoever has it open keeps it.
        assert_eq!(content(file.as_ref()), b"hello\0world");
    });
}

#[test]
fn a_lock_refuses_a_second_one_of_the_same_process_until_it_is_dropped() {
    on_both(|disk, dir| {
        disk.create_dir_all(dir).unwrap();
        let path = dir.join("lock");
        let held = disk.lock(&path).unwrap();
        assert_eq!(disk.lock(&path).err().unwrap().kind(), ErrorKind::WouldBlock);
        let other = disk.lock(&dir.join("other")).unwrap();
        drop(held);
        let again = disk.lock(&path).unwrap();
        drop((other, again));
    });
}

#[test]
fn a_file_in_the_place_of_a_directory_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    drop(OsDisk.create_new(&path).unwrap());
    assert!(OsDisk.create_dir_all(&path).is_err());
    assert!(OsDisk.create_dir_all(&path.join("g")).is_err());
}

#[cfg(unix)]
#[test]
fn what_is_made_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt;

    let dir = tempfile::tempdir().unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let journal = dir.path().join("new/journal");
    OsDisk.create_dir_all(&journal).unwrap();
    drop(OsDisk.create_new(&journal.join("file")).unwrap());
    drop(OsDisk.lock(&journal.join("lock")).unwrap());
    // A mask may take more away, never give.
    assert_eq!(mode(&dir.path().join("new")) & 0o077, 0);
    assert_eq!(mode(&journal) & 0o077, 0);
    assert_eq!(mode(&journal.join("file")) & 0o177, 0);
    assert_eq!(mode(&journal.join("lock")) & 0o177, 0);
}
