//! The files of the source folder: their numbers, attributes, and those that are open.

use fuser::{FileAttr, FileType, INodeNo};
use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Paths never lose their number: the kernel may keep it.
pub struct Tree {
    paths: Mutex<Vec<PathBuf>>,
    open: Mutex<(u64, HashMap<u64, Arc<File>>)>,
}

impl Tree {
    pub fn new(root: &Path) -> io::Result<Self> {
        Ok(Self { paths: Mutex::new(vec![root.canonicalize()?]), open: Mutex::default() })
    }

    pub fn path(&self, number: INodeNo) -> io::Result<PathBuf> {
        let known = self.paths.lock().unwrap().get(number.0 as usize - 1).cloned();
        known.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// The number of what lies at `path`, which must be inside.
    pub fn number(&self, path: PathBuf) -> INodeNo {
        let mut paths = self.paths.lock().unwrap();
        let index = paths.iter().position(|known| *known == path).unwrap_or_else(|| {
            paths.push(path);
            paths.len() - 1
        });
        INodeNo(index as u64 + 1)
    }

    pub fn attributes(&self, number: INodeNo) -> io::Result<FileAttr> {
        attributes(number, &fs::metadata(self.path(number)?)?)
    }

    pub fn open(&self, number: INodeNo) -> io::Result<u64> {
        let file = Arc::new(File::open(self.path(number)?)?);
        let (next, open) = &mut *self.open.lock().unwrap();
        *next += 1;
        open.insert(*next, file);
        Ok(*next)
    }

    pub fn opened(&self, handle: u64) -> io::Result<Arc<File>> {
        let open = self.open.lock().unwrap();
        open.1.get(&handle).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    pub fn close(&self, handle: u64) {
        self.open.lock().unwrap().1.remove(&handle);
    }
}

fn attributes(ino: INodeNo, about: &Metadata) -> io::Result<FileAttr> {
    let kind = FileType::from_std(about.file_type()).ok_or(io::ErrorKind::Unsupported)?;
    let changed = about.modified()?;
    Ok(FileAttr {
        ino,
        size: about.size(),
        blocks: about.blocks(),
        atime: changed,
        mtime: changed,
        ctime: changed,
        crtime: changed,
        kind,
        perm: (about.mode() & 0o777) as u16,
        nlink: 1,
        uid: about.uid(),
        gid: about.gid(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    })
}
