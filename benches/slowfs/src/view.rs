//! The calls of the kernel.

use crate::options::Options;
use crate::pool::Pool;
use crate::reads::{Read, Reads};
use crate::tree::Tree;
use fuser::{
    FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, Request,
};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The virtual file that tells the counts, and its number.
const REPORT: (&str, INodeNo) = (".slowfs", INodeNo(u64::MAX));
const KNOWN_FOR: Duration = Duration::from_secs(1);
const LARGEST_READ: u32 = 1 << 20;
/// Reads that wait at the same time; others are in flight, too, and wait for one of these.
const MOST_AT_ONCE: usize = 256;

pub struct View {
    tree: Tree,
    reads: Arc<Reads>,
    pool: Pool,
}

impl View {
    pub fn new(options: &Options) -> io::Result<Self> {
        Ok(Self {
            tree: Tree::new(&options.source)?,
            reads: Arc::new(Reads::new(options)),
            pool: Pool::new(MOST_AT_ONCE),
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
            return reply.data(if offset == 0 { self.reads.counts.take() } else { String::new() }.as_bytes());
        }
        self.reads.counts.begin();
        let file = self.tree.opened(handle.0);
        let read = Read { arrived: Instant::now(), file, offset, size: size as usize, reply };
        let reads = Arc::clone(&self.reads);
        self.pool.run(move |buffer| reads.answer(read, buffer));
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
