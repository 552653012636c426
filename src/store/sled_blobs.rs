//! The files that sled makes beside its log: each is made durable before what names it, and looked for where it may be.
//!
//! To list a directory costs a tenth of a small batch's sync, and sled hardly ever makes such a file. So the directory
//! is listed when the system says that its entries have changed. The system's word is a time, which a second change may
//! share with the first: it counts if it was old when the directory was listed, since whatever comes after the listing
//! has another one then. Where the clock was set back since, it does not count.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::error::Result;
use crate::store::directory::{create_dir_durably, failed, sync_dir};

const BLOBS_NAME: &str = "blobs";
/// A blob's name is a place in the log, and no log comes as far as this one.
const BAR_NAME: &str = "9223372036854775807";
/// How old a change's time must be to be its alone: no file system's times are coarser.
const SETTLED_AFTER: Duration = Duration::from_secs(2);

/// The directory `blobs/` of a sled database.
pub(crate) struct Blobs {
    path: PathBuf,
    /// Those that are durable. sled writes a blob once and never changes it.
    synced: HashSet<OsString>,
    /// The listing that is still true if the directory has not changed since.
    listed: Option<Listed>,
}

/// A listing that began later than the directory's last change by so much that no later change has the same time.
#[derive(Clone, Copy)]
struct Listed {
    at: SystemTime,
    changed: SystemTime,
}

impl Listed {
    fn is_true(self, changed: SystemTime, now: SystemTime) -> bool {
        self.changed == changed && self.at <= now
    }
}

impl Blobs {
    /// Creates the directory in the database's if there is none.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn open(database: &Path) -> Result<Blobs> {
        let path = database.join(BLOBS_NAME);
        create_dir_durably(&path)?;
        Ok(Blobs { path, synced: HashSet::new(), listed: None })
    }

    /// Makes durable what sled has made. Costs a look at the directory; if it has changed, or did so a moment ago, a
    /// listing, and a sync for each new file.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn sync(&mut self) -> Result<()> {
        let metadata = fs::metadata(&self.path).map_err(|error| failed("looking at", &self.path, error))?;
        let (changed, now) = (changed(&metadata), SystemTime::now());
        if let (Some(listed), Some(changed)) = (self.listed, changed)
            && listed.is_true(changed, now)
        {
            return Ok(());
        }
        self.listed = None;
        self.sync_new()?;
        self.listed = changed.and_then(|changed| listed(changed, now));
        Ok(())
    }

    fn sync_new(&mut self) -> Result<()> {
        let unlisted = |error| failed("listing", &self.path, error);
        let mut present = HashSet::new();
        let mut is_new = false;
        for entry in fs::read_dir(&self.path).map_err(unlisted)? {
            let name = entry.map_err(unlisted)?.file_name();
            if name == BAR_NAME {
                continue;
            }
            if !self.synced.contains(&name) {
                let blob = self.path.join(&name);
                let synced = File::open(&blob).and_then(|file| file.sync_all());
                match synced {
                    Ok(()) => is_new = true,
                    // sled removed it meanwhile, so nothing needs it.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(failed("syncing", &blob, error)),
                }
            }
            present.insert(name);
        }
        self.synced = present;
        if is_new { sync_dir(&self.path) } else { Ok(()) }
    }

    /// Makes sled's next opening fail after it has written its snapshot and before it cleans up: it wants to remove the
    /// blobs beyond the end of its log, and a directory cannot be removed like a file. An empty database has neither
    /// snapshot nor end, and opens.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn bar_cleaning(&self) -> Result<()> {
        let bar = self.path.join(BAR_NAME);
        match fs::create_dir(&bar) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(failed("creating", &bar, error))
            }
            _ => Ok(()),
        }
    }

    /// Lets sled open again, whether it was this process that barred it or one that crashed.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn unbar_cleaning(&self) -> Result<()> {
        let bar = self.path.join(BAR_NAME);
        match fs::remove_dir(&bar) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removing", &bar, error)),
            _ => Ok(()),
        }
    }

    #[cfg(test)]
    pub(crate) fn synced(&self) -> &HashSet<OsString> {
        &self.synced
    }

    /// Whether the next sync lists the directory if nothing changes.
    #[cfg(test)]
    pub(crate) fn is_settled(&self) -> bool {
        self.listed.is_some()
    }
}

/// A listing of a directory that had changed last at `changed`, as somebody who looked at `at`, before it, was told.
fn listed(changed: SystemTime, at: SystemTime) -> Option<Listed> {
    let age = at.duration_since(changed).unwrap_or_default();
    (age >= SETTLED_AFTER).then_some(Listed { at, changed })
}

/// When the directory changed last, by the time that nobody can set.
#[cfg(unix)]
fn changed(metadata: &Metadata) -> Option<SystemTime> {
    use std::os::unix::fs::MetadataExt;
    let (seconds, nanoseconds) = (metadata.ctime(), metadata.ctime_nsec());
    let since = Duration::new(u64::try_from(seconds).ok()?, u32::try_from(nanoseconds).ok()?);
    SystemTime::UNIX_EPOCH.checked_add(since)
}

/// Elsewhere no time is known that tells it, so each sync lists.
#[cfg(not(unix))]
fn changed(_metadata: &Metadata) -> Option<SystemTime> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file system may give all changes within two seconds the same time.
    #[test]
    fn a_listing_counts_once_the_last_change_was_two_seconds_ago() {
        let changed = SystemTime::now();
        let after = |ms| changed + Duration::from_millis(ms);
        assert!(listed(changed, changed - Duration::from_secs(9)).is_none(), "a time that is to come");
        assert!(listed(changed, after(0)).is_none() && listed(changed, after(1_999)).is_none());
        let listed = listed(changed, after(2_000)).unwrap();
        assert!(listed.is_true(changed, after(2_000)) && listed.is_true(changed, after(100_000)));
        assert!(!listed.is_true(after(1), after(100_000)), "the directory has changed since");
        assert!(!listed.is_true(changed, after(1_999)), "the clock was set back");
    }

    #[test]
    fn what_is_made_after_a_listing_that_counts_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let mut blobs = Blobs::open(directory.path()).unwrap();
        let put = |name: &str| fs::write(directory.path().join(BLOBS_NAME).join(name), name).unwrap();
        put("1");
        blobs.sync().unwrap();
        assert!(blobs.synced().len() == 1 && !blobs.is_settled(), "the change was just now");
        put("2");
        blobs.sync().unwrap();
        assert_eq!(blobs.synced().len(), 2);
        // The time itself is what is tested.
        std::thread::sleep(SETTLED_AFTER);
        blobs.sync().unwrap();
        assert!(blobs.is_settled());
        blobs.synced.clear();
        blobs.sync().unwrap();
        assert!(blobs.synced().is_empty(), "it was listed again, though nothing has changed");
        put("3");
        blobs.sync().unwrap();
        assert!(blobs.synced().contains(&OsString::from("3")) && !blobs.is_settled());
        fs::remove_file(directory.path().join(BLOBS_NAME).join("3")).unwrap();
        blobs.sync().unwrap();
        assert!(!blobs.synced().contains(&OsString::from("3")), "another file of that name is not durable");
    }
}
