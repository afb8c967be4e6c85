//! Memory that this process may use: the machine's, within the limits of the control groups it is in.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::os;

/// Bytes of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ram {
    /// All that the process could ever have.
    pub total: u64,
    /// What could be had without swapping and without ending anybody: what the page cache holds makes way.
    pub available: u64,
}

impl Ram {
    /// As of now; 0 bytes if the system does not say, which only Linux does here.
    #[must_use]
    pub fn now() -> Self {
        os::KERNEL_FILES.map_or(Self { total: 0, available: 0 }, |root| Self::in_root(Path::new(root)))
    }

    /// What `proc` and `sys` below `root` tell.
    fn in_root(root: &Path) -> Self {
        let report = read(&root.join("proc/meminfo"));
        let kib = |key| number_after(&report, key).unwrap_or(0).saturating_mul(1024);
        let machine = Self { total: kib("MemTotal:"), available: kib("MemAvailable:") };
        groups(root).iter().filter_map(Group::ram).fold(machine, |least, group| Self {
            total: least.total.min(group.total),
            available: least.available.min(group.available),
        })
    }
}

/// A control group, of version 1 or 2.
struct Group {
    folder: PathBuf,
    /// The files of its limit and of what it uses, and the words before the bytes of its page cache.
    limit: &'static str,
    usage: &'static str,
    cached: [&'static str; 2],
}

impl Group {
    /// None without a limit.
    fn ram(&self) -> Option<Ram> {
        let number = |name: &str| read(&self.folder.join(name)).trim().parse::<u64>().ok();
        let (limit, usage) = (number(self.limit)?, number(self.usage)?);
        let statistics = read(&self.folder.join("memory.stat"));
        let cached = self.cached.iter().filter_map(|key| number_after(&statistics, key)).sum::<u64>();
        Some(Ram { total: limit, available: limit.saturating_sub(usage.saturating_sub(cached)) })
    }
}

/// The group of this process that accounts for memory, and all above it.
fn groups(root: &Path) -> Vec<Group> {
    let told = read(&root.join("proc/self/cgroup"));
    // Lines are "number:controllers:path"; that of version 2 has no controllers.
    let lines =
        told.lines().filter_map(|line| line.splitn(3, ':').skip(1).collect::<Vec<_>>().try_into().ok());
    let lines: Vec<[&str; 2]> = lines.collect();
    let of_version_1 = lines.iter().find(|[controllers, _]| controllers.split(',').any(|it| it == "memory"));
    let of_version_2 = lines.iter().find(|[controllers, _]| controllers.is_empty());
    let mounted = root.join("sys/fs/cgroup");
    let group = |folder| match of_version_1 {
        Some(_) => Group {
            folder,
            limit: "memory.limit_in_bytes",
            usage: "memory.usage_in_bytes",
            cached: ["total_inactive_file", "total_active_file"],
        },
        None => Group {
            folder,
            limit: "memory.max",
            usage: "memory.current",
            cached: ["inactive_file", "active_file"],
        },
    };
    let top = if of_version_1.is_some() { mounted.join("memory") } else { mounted };
    let Some([_, path]) = of_version_1.or(of_version_2) else {
        return Vec::new();
    };
    // In a container the path may be the host's, and what is mounted the container's own group.
    let path = Path::new(path.trim_start_matches('/'));
    path.ancestors().map(|ancestor| group(top.join(ancestor))).collect()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The number in the line of `report` that begins with the word `key`.
fn number_after(report: &str, key: &str) -> Option<u64> {
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let line = report.lines().map(words).find(|words| words.first().is_some_and(|word| word == key))?;
    line.get(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn machine(files: &[(&str, String)]) -> Ram {
        let root = tempfile::tempdir().unwrap();
        let meminfo =
            ("proc/meminfo", "MemTotal: 8192 kB\nMemFree: 1 kB\nMemAvailable:    6144 kB\n".to_owned());
        for (name, text) in files.iter().chain([&meminfo]) {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Ram::in_root(root.path())
    }

    fn group(folder: &str, names: [&str; 2], limit: &str, usage: u64, stat: String) -> [(String, String); 3] {
        let file = |name: &str, text: String| (format!("sys/fs/cgroup/{folder}/{name}"), text);
        [file(names[0], limit.to_owned()), file(names[1], usage.to_string()), file("memory.stat", stat)]
    }

    fn with_groups(own: &str, groups: &[[(String, String); 3]]) -> Ram {
        let mut files = vec![("proc/self/cgroup", own.to_owned())];
        files.extend(groups.iter().flatten().map(|(name, text)| (name.as_str(), text.clone())));
        machine(&files)
    }

    #[test]
    fn without_groups_the_machine_is_the_limit() {
        let whole = Ram { total: 8 * MIB, available: 6 * MIB };
        assert_eq!(machine(&[]), whole);
        assert_eq!(with_groups("0::/\n", &[]), whole);
        let names = ["memory.max", "memory.current"];
        assert_eq!(with_groups("0::/a\n", &[group("a", names, "max", 5, String::new())]), whole);
    }

    #[test]
    fn the_tightest_of_the_groups_counts_less_what_it_uses_but_for_its_page_cache() {
        let names = ["memory.max", "memory.current"];
        let cached = |bytes: u64| format!("anon 7\ninactive_file {bytes}\nactive_file {bytes}\n");
        let inner = group("a/b", names, &(5 * MIB).to_string(), 4 * MIB, cached(MIB));
        let outer = group("a", names, &(4 * MIB).to_string(), 3 * MIB, cached(0));
        assert_eq!(with_groups("0::/a/b\n", &[inner.clone(), outer]), Ram { total: 4 * MIB, available: MIB },);
        assert_eq!(with_groups("0::/a/b\n", &[inner]), Ram { total: 5 * MIB, available: 3 * MIB });
    }

    #[test]
    fn groups_of_version_1_are_known() {
        let names = ["memory.limit_in_bytes", "memory.usage_in_bytes"];
        let stat = format!("cache 1\ntotal_inactive_file {MIB}\ntotal_active_file 0\n");
        let own = group("memory/a", names, &(2 * MIB).to_string(), 2 * MIB, stat);
        let told = "5:cpu,cpuacct:/x\n4:memory:/a\n0::/y\n";
        assert_eq!(with_groups(told, &[own]), Ram { total: 2 * MIB, available: MIB });
    }

    #[test]
    fn this_machine_has_memory() {
        let Ram { total, available } = Ram::now();
        assert_eq!(available > 0, os::KERNEL_FILES.is_some(), "nobody else tells");
        assert!(available <= total, "{available} of {total}");
    }
}
