//! slowfs: a read-only view of a folder that makes readers wait, in the way of a network file system.

mod counts;
mod options;
mod pace;
mod pool;
mod reads;
mod tree;
mod view;

use fuser::{Config, MountOption, Session};
use nix::mount::{MntFlags, umount2};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use options::Options;
use std::{error::Error, thread};

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse(std::env::args().skip(1))?;
    let mut ending = SigSet::empty();
    ending.add(Signal::SIGTERM);
    ending.add(Signal::SIGINT);
    ending.thread_block()?; // all threads inherit that: the one below alone takes them
    set_pdeathsig(Signal::SIGTERM)?;

    let mut config = Config::default();
    config.mount_options = vec![MountOption::RO, MountOption::FSName("slowfs".into())];
    config.n_threads = Some(2);
    config.clone_fd = true;
    let session = Session::new(view::View::new(&options)?, &options.mount, &config)?;
    thread::spawn(move || {
        let _ = ending.wait();
        let left = umount2(&options.mount, MntFlags::MNT_DETACH); // files that are still open see an error
        std::process::exit(i32::from(left.is_err()));
    });
    Ok(session.run()?) // ends when somebody unmounts it
}
