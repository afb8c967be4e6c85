//! The calls of the kernel.

use crate::counts::Counts;
use crate::options::Options;
use crate::pace::Pace;
use crate::tree::Tree;
use fuser::{
    FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, Request,
};
use nix::errno::Errno;
use std::cell::RefCell;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};
use std::{io, thread};

/// The virtual file that tells the counts, and its number.
const REPORT: (&str, INodeNo) = (".slowfs", INodeNo(u64::MAX));
const KNOWN_FOR: Duration = Duration::from_secs(1);
const LARGEST_READ: u32 = 1 << 20;

thread_local! {
    /// What this thread's reads are read into, again and again.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

pub struct View {
    tree: Tree,
    pace: Pace,
    counts: Counts,
    fail_at: Option<u64>,
}

impl View {
    pub fn new(options: &Options) -> io::Result<Self> {
        Ok(Self {
            tree: Tree::new(&options.source)?,
            pace: Pace::new(options),
            counts: Counts::default(),
            fail_at: options.fail_at,
        })
    }

    fn attributes(&self, number: INodeNo) -> io::Result<FileAttr> {
        if number != REPORT.1 {
            return self.tree.attributes(number);
        }
        let root = self.tree.attributes(INodeNo::ROOT)?;
        Ok(FileAttr { ino: number, kind: FileType::RegularFile, perm: 0o444, size: 0, blocks: 0, ..root })
    }

    fn find(&self, parent: INodeNo, name: &OsStr) -> io::Result<FileAttr> {
        if (parent, name) == (INodeNo::ROOT, OsStr::new(REPORT.0)) {
            return self.attributes(REPORT.1);
        }
        let path = self.tree.path(parent)?.join(name);
        fs::symlink_metadata(&path)?;
        self.attributes(self.tree.number(path))
    }

    fn fill(&self, file: &File, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < into.len() {
            match file.read_at(&mut into[filled..], offset + filled as u64)? {
                0 => break,
                count => filled += count,
            }
        }
        let read = offset..offset + filled as u64;
        if self.fail_at.is_some_and(|at| read.contains(&at)) { Err(Errno::EIO.into()) } else { Ok(filled) }
    }

    fn names(&self, folder: INodeNo) -> io::Result<Vec<(INodeNo, FileType, OsString)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.tree.path(folder)?)? {
            let entry = entry?;
            if let Some(kind) = FileType::from_std(entry.file_type()?) {
                found.push((self.tree.number(entry.path()), kind, entry.file_name()));
            }
        }
        found.sort_by_key(|(number, ..)| number.0);
        Ok(found)
    }
}

impl Filesystem for View {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        config.set_max_background(512).expect("more than none");
        config.set_max_write(LARGEST_READ).expect("within fuser's bound"); // holds for reads, too
        let needed = InitFlags::FUSE_ASYNC_DIO; // a larger direct read is several requests at once, as on NFS
        config.add_capabilities(needed).map_err(|_| io::Error::other("this kernel has no FUSE_ASYNC_DIO"))
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.find(parent, name) {
            Ok(found) => reply.entry(&KNOWN_FOR, &found, Generation(0)),
            Err(error) => reply.error(error.into()),
        }
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(number) {
            Ok(found) => reply.attr(&KNOWN_FOR, &found),
            Err(error) => reply.error(error.into()),
        }
    }

    fn open(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if number == REPORT.1 {
            return reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
        }
        match self.tree.open(number) {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::FOPEN_KEEP_CACHE),
            Err(error) => reply.error(error.into()),
        }
    }

    fn read(
        &self,
        _: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if number == REPORT.1 {
            return reply.data(if offset == 0 { self.counts.take() } else { String::new() }.as_bytes());
        }
        let arrived = Instant::now();
        self.counts.begin();
        BUFFER.with_borrow_mut(|buffer| {
            buffer.resize(LARGEST_READ.max(size) as usize, 0);
            let into = &mut buffer[..size as usize];
            let result = self.tree.opened(handle.0).and_then(|file| self.fill(&file, offset, into));
            let bytes = *result.as_ref().unwrap_or(&0);
            let due = self.pace.due(arrived, bytes);
            thread::sleep(due.saturating_duration_since(Instant::now()));
            self.counts.end(bytes);
            match result {
                Ok(_) => reply.data(&into[..bytes]),
                Err(error) => reply.error(error.into()),
            }
        });
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.tree.close(handle.0);
        reply.ok();
    }

    fn readdir(&self, _: &Request, folder: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        match self.names(folder) {
            Ok(found) => {
                for (index, (number, kind, name)) in found.into_iter().enumerate().skip(offset as usize) {
                    if reply.add(number, index as u64 + 1, kind, name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(error.into()),
        }
    }
}
