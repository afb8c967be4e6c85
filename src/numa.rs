//! NUMA: nodes, each with processors and the memory near them, and threads that stay on one.
//!
//! Memory comes to lie on the node of the thread that touches it first. So a load whose threads stay on one node fills
//! memory there. On a machine with one node of processors nothing happens, and nor does it on systems other than Linux.

use std::{
    collections::BTreeSet,
    fs,
    marker::PhantomData,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use crate::os::{KERNEL_FILES, allow_processors, allowed_processors, current_processor};

/// A load stays on a node that has a processor for each of its readers, or so many. Sixteen processors copy and digest
/// more bytes than a link takes (3 to 4 GB/s each, measured on an AMD EPYC; PCIe 5 x16: 64 GB/s). With fewer, the
/// processors of the other nodes are worth more than the way to their memory costs.
const ENOUGH_PROCESSORS: usize = 16;
/// The kernel's numbers of processors and nodes are below this where it counts: C's sets hold no others (`CPU_SETSIZE`).
const MAX_NUMBERS: usize = 1024;

/// Numbers of processors, or of nodes.
type Numbers = BTreeSet<usize>;

/// A node, by the kernel's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node(pub u32);

/// The nodes of a machine that have processors; none if there is only one.
#[derive(Debug)]
pub struct Nodes {
    /// Where the kernel tells of devices: `/sys`.
    sys: PathBuf,
    nodes: Vec<(Node, Numbers)>,
}

impl Nodes {
    /// Those of this machine, looked up once.
    pub fn here() -> &'static Self {
        static HERE: OnceLock<Nodes> = OnceLock::new();
        HERE.get_or_init(|| match KERNEL_FILES {
            Some(root) => Self::found(Path::new(root).join("sys")),
            None => Self { sys: PathBuf::new(), nodes: Vec::new() },
        })
    }

    /// Those that the kernel tells of in `sys`. A node that it does not tell of is left out.
    fn found(sys: PathBuf) -> Self {
        let folder = sys.join("devices/system/node");
        let processors = |node: usize| told(&folder.join(format!("node{node}/cpulist")));
        let node = |number: usize| {
            let processors = processors(number).filter(|processors| !processors.is_empty())?;
            Some((Node(u32::try_from(number).ok()?), processors))
        };
        let online = told(&folder.join("online")).unwrap_or_default();
        let mut nodes: Vec<_> = online.into_iter().filter_map(node).collect();
        if nodes.len() < 2 {
            nodes.clear();
        }
        Self { sys, nodes }
    }

    /// Whether there are several, of which one is nearer than others.
    #[must_use]
    pub fn are_several(&self) -> bool {
        !self.nodes.is_empty()
    }

    /// The node of the processor that the calling thread runs on.
    #[must_use]
    pub fn of_caller(&self) -> Option<Node> {
        if self.are_several() { self.of_processor(current_processor()?) } else { None }
    }

    fn of_processor(&self, processor: usize) -> Option<Node> {
        self.nodes.iter().find(|(_, all)| all.contains(&processor)).map(|&(node, _)| node)
    }

    /// The node that the calling thread cannot leave.
    #[must_use]
    pub fn confining(&self) -> Option<Node> {
        let allowed = self.are_several().then(allowed_processors).flatten()?;
        self.nodes.iter().find(|(_, all)| allowed.is_subset(all)).map(|&(node, _)| node)
    }

    /// The node that a device is attached to, which a driver calls by this PCI bus id: `0000:3B:00.0`.
    #[must_use]
    pub fn of_device(&self, bus_id: &str) -> Option<Node> {
        let name = self.are_several().then(|| sysfs_name(bus_id)).flatten()?;
        let told = fs::read_to_string(self.sys.join("bus/pci/devices").join(name).join("numa_node")).ok()?;
        let node = Node(told.trim().parse().ok()?); // -1: none
        self.nodes.iter().find(|(known, _)| *known == node).map(|_| node)
    }

    /// Keeps the calling thread, and those that it starts meanwhile, on `node`, for a load with so many `readers`. None,
    /// and they run where they did, if too few of its processors are among those that the thread may use.
    #[must_use]
    pub fn stay_on(&self, node: Node, readers: usize) -> Option<Stay> {
        let (_, all) = self.nodes.iter().find(|(known, _)| *known == node)?;
        let before = allowed_processors()?;
        let near = chosen(all, &before, readers)?;
        allow_processors(&near).ok()?;
        Some(Stay { node, before, thread: PhantomData })
    }
}

/// The processors of a node, `all`, that a load with so many `readers` uses of those `allowed`; none if they are too few.
fn chosen(all: &Numbers, allowed: &Numbers, readers: usize) -> Option<Numbers> {
    let enough = readers.min(ENOUGH_PROCESSORS).min(allowed.len()).max(1);
    let near: Numbers = all.intersection(allowed).copied().collect();
    (near.len() >= enough).then_some(near)
}

/// A thread that stays on a node until this is dropped. Its processors are then those that it had before.
#[derive(Debug)]
pub struct Stay {
    node: Node,
    before: Numbers,
    /// It must be dropped where it was made: not `Send`.
    thread: PhantomData<*const ()>,
}

impl Stay {
    /// The node.
    #[must_use]
    pub const fn node(&self) -> Node {
        self.node
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        // If the system has taken them all away meanwhile, those that it gave instead are right.
        let _ = allow_processors(&self.before);
    }
}

/// The set of numbers that a file of the kernel's lists.
fn told(path: &Path) -> Option<Numbers> {
    parsed(&fs::read_to_string(path).ok()?)
}

/// A list of the kernel's, such as `0-3,8`. Those that do not count are left out.
fn parsed(list: &str) -> Option<Numbers> {
    let mut set = Numbers::new();
    for range in list.trim().split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        set.extend(first..=last.min(MAX_NUMBERS - 1));
    }
    Some(set)
}

/// What the kernel calls the device that a driver calls `bus_id`. Drivers write capitals, and domains of eight digits.
fn sysfs_name(bus_id: &str) -> Option<String> {
    let (rest, function) = bus_id.split_once('.')?;
    let mut parts = rest.rsplitn(3, ':').chain([function]).map(|part| u32::from_str_radix(part, 16).ok());
    let (device, bus, domain, function) = (parts.next()??, parts.next()??, parts.next()??, parts.next()??);
    Some(format!("{domain:04x}:{bus:02x}:{device:02x}.{function:x}"))
}

#[cfg(test)]
mod tests {
    use std::{panic, thread};

    use super::*;

    fn set(members: &[usize]) -> Numbers {
        members.iter().copied().collect()
    }

    /// A folder like `/sys`, of these files.
    fn sys(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    fn nodes(files: &[(&str, &str)]) -> Vec<(u32, Numbers)> {
        let folder = sys(files);
        let found = Nodes::found(folder.path().into());
        found.nodes.into_iter().map(|(node, processors)| (node.0, processors)).collect()
    }

    const ONLINE: &str = "devices/system/node/online";
    const FIRST: &str = "devices/system/node/node0/cpulist";
    const SECOND: &str = "devices/system/node/node1/cpulist";

    #[test]
    fn lists_are_parsed() {
        for (list, members) in [
            ("0\n", &[0][..]),
            ("0-3,8,10-11\n", &[0, 1, 2, 3, 8, 10, 11]),
            ("\n", &[]),
            ("1022-9999999999", &[1022, 1023]),
            ("5000", &[]),
            ("3-1", &[]),
        ] {
            assert_eq!(parsed(list), Some(set(members)), "{list:?}");
        }
        for list in ["a", "0-", "-1", "0-3 5", "0,b", "99999999999999999999999"] {
            assert_eq!(parsed(list), None, "{list:?}");
        }
    }

    #[test]
    fn nodes_are_found_with_their_processors() {
        let third = ("devices/system/node/node4/cpulist", "4,7\n");
        let found = nodes(&[(ONLINE, "0-1,4\n"), (FIRST, "0-1,8-9\n"), (SECOND, "2-3\n"), third]);
        assert_eq!(found, [(0, set(&[0, 1, 8, 9])), (1, set(&[2, 3])), (4, set(&[4, 7]))]);
    }

    #[test]
    fn one_node_of_processors_is_none() {
        let memory_only = [(ONLINE, "0-1\n"), (FIRST, "0-3\n"), (SECOND, "\n")];
        for files in [
            &memory_only[..],
            &[(ONLINE, "0\n"), (FIRST, "0-3\n")],
            &[(ONLINE, "0-1\n"), (FIRST, "0-3\n")], // nothing is told of the second
            &[(ONLINE, "0-1\n"), (FIRST, "0-3\n"), (SECOND, "?")], // nor here
            &[(FIRST, "0-3\n"), (SECOND, "4-7\n")],
            &[],
        ] {
            assert_eq!(nodes(files), [], "{files:?}");
        }
    }

    #[test]
    fn devices_are_found_by_any_spelling_of_their_bus() {
        let device = |bus, node| (format!("bus/pci/devices/{bus}/numa_node"), node);
        let devices = [
            device("0000:3b:00.0", "1\n"),
            device("0000:5e:00.0", "-1\n"),
            device("10000:01:1f.7", "0\n"),
            device("0000:06:00.0", "2\n"), // a node without processors
            device("0000:07:00.0", "?\n"),
        ];
        let mut files = vec![(ONLINE, "0-2\n"), (FIRST, "0\n"), (SECOND, "1\n")];
        files.extend(devices.iter().map(|(path, node)| (path.as_str(), *node)));
        let folder = sys(&files);
        let found = Nodes::found(folder.path().into());
        for (bus, node) in [
            ("0000:3B:00.0", Some(1)),
            ("00000000:3b:00.0", Some(1)),
            ("10000:01:1F.7", Some(0)),
            ("0000:5E:00.0", None),
            ("0000:06:00.0", None),
            ("0000:07:00.0", None),
            ("0000:99:00.0", None), // no such device
            ("../../../0000:3b:00.0", None),
            ("3b:00.0", None),
            ("", None),
        ] {
            assert_eq!(found.of_device(bus), node.map(Node), "{bus:?}");
        }
        fs::write(folder.path().join(ONLINE), "0\n").unwrap();
        assert_eq!(Nodes::found(folder.path().into()).of_device("0000:3b:00.0"), None, "there is one node");
    }

    #[test]
    fn a_load_uses_those_of_the_node_that_it_may_use() {
        let node = set(&[0, 1, 2, 3]);
        for (allowed, readers, near) in [
            (&[0, 1, 2, 3, 4, 5][..], 4, Some(&[0, 1, 2, 3][..])),
            (&[1, 3, 4, 5], 2, Some(&[1, 3])),
            (&[1, 3], 64, Some(&[1, 3])),   // it cannot leave the node in any case
            (&[0, 1, 2, 3, 4, 5], 5, None), // the others have more to give
            (&[1, 4, 5], 2, None),
            (&[4, 5], 1, None),
            (&[4, 5], 0, None),
        ] {
            assert_eq!(chosen(&node, &set(allowed), readers), near.map(set), "{allowed:?} {readers}");
        }
        let all: Vec<usize> = (0..32).collect();
        let (large, all) = (set(&all[..16]), set(&all));
        assert_eq!(chosen(&large, &all, 128), Some(large.clone()), "sixteen are enough for any number");
    }

    fn allowed() -> Numbers {
        allowed_processors().unwrap()
    }

    /// Two nodes that share out the processors that this thread may use; if there is one, none.
    fn halves() -> Option<(Nodes, Numbers)> {
        let allowed = allowed_processors()?;
        let all: Vec<_> = allowed.iter().copied().collect();
        let (first, second) = all.split_at(all.len() / 2);
        let nodes = vec![(Node(0), set(first)), (Node(1), set(second))];
        (all.len() > 1).then_some((Nodes { sys: "/nowhere".into(), nodes }, allowed))
    }

    #[test]
    #[cfg_attr(miri, ignore = "it has no scheduler to ask")]
    fn a_thread_stays_on_a_node_with_those_it_starts_and_is_free_again() {
        let Some((nodes, before)) = halves() else { return };
        let near = nodes.nodes[1].1.clone();
        let other = set(&[MAX_NUMBERS - 1]);
        assert_eq!(nodes.confining(), None);
        {
            let stay = nodes.stay_on(Node(1), 1).unwrap();
            assert_eq!(
                (stay.node(), nodes.of_caller(), nodes.confining()),
                (Node(1), Some(Node(1)), Some(Node(1)))
            );
            let started = thread::spawn(|| thread::spawn(allowed).join().unwrap()).join().unwrap();
            assert_eq!([allowed(), started], [near.clone(), near]);
            assert!(nodes.stay_on(Node(0), 1).is_none(), "the thread may not use that one");
        }
        assert_eq!(allowed(), before);
        let failed = panic::catch_unwind(|| {
            let _stay = nodes.stay_on(Node(0), 1).unwrap();
            panic!("a reader does");
        });
        assert!(failed.is_err());
        assert_eq!(allowed(), before);
        let refused = Nodes { sys: PathBuf::new(), nodes: vec![(Node(0), other)] };
        assert!(refused.stay_on(Node(0), 1).is_none() && refused.stay_on(Node(7), 1).is_none());
        assert_eq!(allowed(), before);
    }
}
