//! Several processes with one cache, and one that is killed.

use std::{
    env,
    io::{BufRead as _, BufReader, Write as _, stdout},
    process::{Child, Command, Stdio},
    sync::RwLock,
};

use super::*;
use crate::sync::Unpoisoned as _;

/// Written to while a process is being started.
pub(super) static STARTING: RwLock<()> = RwLock::new(());

/// A process that runs the test of that name, which is ignored otherwise, in `folder`.
fn start(test: &str, folder: &Path) -> Child {
    let mut child = Command::new(env::current_exe().unwrap());
    child.args(["--exact", &format!("remote::stores::cache::tests::processes::{test}")]);
    child.args(["--ignored", "--nocapture", "--test-threads=1"]).current_dir(folder);
    let _starting = STARTING.write().unpoisoned();
    child.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap()
}

fn object() -> Arc<Fake> {
    Fake::numbered(1, 16 * MIB + 5)
}

#[test]
#[ignore = "a process of other tests"]
fn loading() {
    load(&env::current_dir().unwrap(), "a", &object(), 900_000);
}

#[test]
fn processes_that_load_the_same_at_once_leave_all_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let children: Vec<_> = (0..4).map(|_| start("loading", folder.path())).collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("1 passed"));
    }
    assert_eq!(load(folder.path(), "a", &object(), MIB), 0);
}

#[test]
#[ignore = "a process of another test"]
fn loading_until_killed() {
    for name in 0.. {
        load(&env::current_dir().unwrap(), &name.to_string(), &object(), 900_000);
        writeln!(stdout(), "{name} loaded").unwrap();
    }
}

#[test]
fn what_a_killed_process_leaves_is_right_or_missing() {
    for kill_at in 0..6 {
        let folder = tempfile::tempdir().unwrap();
        let mut child = start("loading_until_killed", folder.path());
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        lines.find(|line| line.as_ref().unwrap().ends_with(&format!("{kill_at} loaded"))).unwrap().unwrap();
        child.kill().unwrap(); // in the midst of the next one
        child.wait().unwrap();
        let object = object();
        assert_eq!(load(folder.path(), &kill_at.to_string(), &object, MIB), 0);
        load(folder.path(), &(kill_at + 1).to_string(), &object, MIB);
        assert_eq!(load(folder.path(), &(kill_at + 1).to_string(), &object, MIB), 0);
        let _alone = STARTING.read().unpoisoned();
        assert!(Folder::open(folder.path(), Some(0)).unwrap().make_room(0).is_ok());
        assert!(files_left(folder.path()).is_empty(), "its locks have gone with it");
    }
}

fn files_left(folder: &Path) -> Vec<PathBuf> {
    let own = fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
    let files = fs::read_dir(own).unwrap().map(|file| file.unwrap().path());
    files.filter(|file| file.extension().is_some()).collect()
}
