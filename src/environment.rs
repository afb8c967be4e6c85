//! The environment variables, read in one place and nowhere else.

use std::{
    env,
    ffi::OsString,
    num::{NonZeroU64, NonZeroUsize},
};

use crate::{
    error::{Error, Result},
    os,
};

/// Reader threads unless `FLASHPACK_READ_THREADS` says otherwise; through the page cache the processors at hand clamp it.
const DEFAULT_READ_THREADS: usize = 16;
/// Reader threads that begin a load from a store: at 20 ms and 100 MB/s a connection, requests of 8 MiB bring 2.5 GB/s.
const REMOTE_THREADS: usize = 32;
/// So many may become of these while a storage that makes them wait gives more to more of them: at 5 ms and 4 MiB a read
/// that is 100 GB/s, and a thread for each is still cheap.
const MAX_WAITING_THREADS: usize = 128;
/// Bounds of `FLASHPACK_READ_CHUNK_BYTES`: a page, and 1 GiB.
const READ_CHUNK_BOUNDS: (u64, u64) = (4096, 1 << 30);

/// Defaults of loads as the `FLASHPACK_*` environment variables set them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a variable")]
pub struct Environment {
    /// `FLASHPACK_CPU_PARALLEL_READ`: loads to the CPU read every byte instead of mapping the file.
    pub eager: bool,
    /// `FLASHPACK_READ_THREADS`, clamped to the processors this process may use; 1 if `FLASHPACK_PARALLEL_READ=0`.
    pub read_threads: NonZeroUsize,
    /// `FLASHPACK_READ_CHUNK_BYTES`; if it is not set, loads take what suits the way to the bytes.
    pub read_chunk_bytes: Option<u64>,
    /// `FLASHPACK_DIRECT_IO`: past the page cache, or not, or as the state of the page cache suggests.
    pub direct_io: Option<bool>,
    /// Reader threads that begin when they mostly wait for a disk or a network: `FLASHPACK_READ_THREADS`, not clamped to
    /// processors.
    pub waiting_threads: NonZeroUsize,
    /// The same when they wait for a store.
    pub remote_threads: NonZeroUsize,
    /// So many there are at most then: more start while that helps, unless the variable says how many.
    pub max_waiting_threads: NonZeroUsize,
    /// `FLASHPACK_CACHE_PINNED`: pinned staging memory outlives the load that made it.
    pub cache_pinned: bool,
    /// `FLASHPACK_PINNED_BYTES`: most pinned staging memory of the process.
    pub pinned_bytes: Option<NonZeroU64>,
    /// `FLASHPACK_PARALLEL_READ`: loads read with several threads.
    pub parallel_read: bool,
    /// `FLASHPACK_NO_THREAD_CLAMP` turned around: no more threads read through the page cache than there are processors.
    pub clamps_threads: bool,
    /// `FLASHPACK_NUMA`: loads stay on the node of their device or their caller.
    pub numa: bool,
    /// `FLASHPACK_TIMELINE`: the report of a load says what each thread did when.
    pub timeline: bool,
    /// `FLASHPACK_SHARD_STRATEGY`: how ranks share reading, `contiguous` or `windows`.
    pub shard_strategy: &'static str,
    /// `FLASHPACK_SHARD_BYTES`: bytes that ranks send at a time.
    pub shard_bytes: Option<NonZeroU64>,
}

impl Environment {
    /// Reads the variables of this process.
    ///
    /// # Errors
    /// [`ErrorKind::Argument`](crate::ErrorKind::Argument), naming a variable whose value is malformed.
    pub fn read() -> Result<Self> {
        Self::from_lookup(|name| env::var_os(name), os::parallelism())
    }

    fn from_lookup(lookup: impl Fn(&str) -> Option<OsString>, processors: NonZeroUsize) -> Result<Self> {
        let vars = Variables(lookup);
        let asked = vars.number("FLASHPACK_READ_THREADS", DEFAULT_READ_THREADS as u64, (1, 1024))?;
        let asked = usize::try_from(asked).ok().and_then(NonZeroUsize::new).unwrap_or(NonZeroUsize::MIN);
        let clamps_threads = !vars.flag("FLASHPACK_NO_THREAD_CLAMP", false)?;
        let clamped = if clamps_threads { asked.min(processors) } else { asked };
        let is_told = vars.value("FLASHPACK_READ_THREADS").is_some();
        let most = if is_told { asked } else { NonZeroUsize::new(MAX_WAITING_THREADS).unwrap_or(asked) };
        let parallel_read = vars.flag("FLASHPACK_PARALLEL_READ", true)?;
        let unless_alone = |threads| if parallel_read { threads } else { NonZeroUsize::MIN };
        Ok(Self {
            eager: vars.flag("FLASHPACK_CPU_PARALLEL_READ", false)?,
            read_threads: unless_alone(clamped),
            read_chunk_bytes: vars
                .value("FLASHPACK_READ_CHUNK_BYTES")
                .map(|_| vars.number("FLASHPACK_READ_CHUNK_BYTES", 0, READ_CHUNK_BOUNDS))
                .transpose()?,
            direct_io: match vars.lowercase("FLASHPACK_DIRECT_IO").as_deref() {
                None | Some("auto") => None,
                Some(_) => Some(vars.flag("FLASHPACK_DIRECT_IO", false)?),
            },
            waiting_threads: unless_alone(asked),
            remote_threads: unless_alone(if is_told {
                asked
            } else {
                NonZeroUsize::new(REMOTE_THREADS).unwrap_or(asked)
            }),
            max_waiting_threads: unless_alone(most),
            cache_pinned: vars.flag("FLASHPACK_CACHE_PINNED", true)?,
            pinned_bytes: NonZeroU64::new(vars.number("FLASHPACK_PINNED_BYTES", 0, (1 << 20, u64::MAX))?),
            parallel_read,
            clamps_threads,
            numa: vars.flag("FLASHPACK_NUMA", true)?,
            timeline: vars.flag("FLASHPACK_TIMELINE", false)?,
            shard_strategy: vars.one_of("FLASHPACK_SHARD_STRATEGY", &["contiguous", "windows"])?,
            shard_bytes: NonZeroU64::new(vars.number("FLASHPACK_SHARD_BYTES", 0, (1, u64::MAX))?),
        })
    }
}

/// All variables that are text, as they are now: stores and the tools of their users have names of their own for them.
#[cfg(feature = "remote")]
pub(crate) fn variables() -> std::collections::BTreeMap<String, String> {
    env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// `FLASHPACK_CACHE`, the folder that keeps what is read of objects, and `FLASHPACK_CACHE_BYTES`, what all of it may take.
///
/// # Errors
/// [`ErrorKind::Argument`](crate::ErrorKind::Argument), naming a variable whose value is malformed.
#[cfg(feature = "remote")]
pub(crate) fn cache() -> Result<(Option<std::path::PathBuf>, Option<u64>)> {
    cache_from(|name| env::var_os(name))
}

#[cfg(feature = "remote")]
fn cache_from(
    lookup: impl Fn(&str) -> Option<OsString>,
) -> Result<(Option<std::path::PathBuf>, Option<u64>)> {
    let folder = lookup("FLASHPACK_CACHE").filter(|folder| !folder.is_empty()).map(Into::into);
    let limit = Variables(lookup).number("FLASHPACK_CACHE_BYTES", 0, (1 << 20, u64::MAX))?;
    Ok((folder, NonZeroU64::new(limit).map(NonZeroU64::get)))
}

struct Variables<F>(F);

impl<F: Fn(&str) -> Option<OsString>> Variables<F> {
    /// The trimmed value; unset and empty are the same.
    fn value(&self, name: &str) -> Option<String> {
        let value = (self.0)(name)?.to_string_lossy().trim().to_owned();
        (!value.is_empty()).then_some(value)
    }

    fn lowercase(&self, name: &str) -> Option<String> {
        self.value(name).map(|value| value.to_ascii_lowercase())
    }

    fn flag(&self, name: &str, default: bool) -> Result<bool> {
        match self.lowercase(name).as_deref() {
            None => Ok(default),
            Some("1" | "true" | "yes" | "on") => Ok(true),
            Some("0" | "false" | "no" | "off") => Ok(false),
            Some(value) => Err(Error::argument(format!("{name} is {value:?}, expected 0 or 1"))),
        }
    }

    /// The one of `words` that the value is; of none the first.
    fn one_of(&self, name: &str, words: &[&'static str]) -> Result<&'static str> {
        let Some(value) = self.lowercase(name) else {
            return Ok(words[0]);
        };
        let unknown = || Error::argument(format!("{name} is {value:?}, expected {}", words.join(" or ")));
        words.iter().copied().find(|word| *word == value).ok_or_else(unknown)
    }

    fn number(&self, name: &str, default: u64, (low, high): (u64, u64)) -> Result<u64> {
        let Some(value) = self.value(name) else {
            return Ok(default);
        };
        match value.parse() {
            Ok(number) if (low..=high).contains(&number) => Ok(number),
            _ => {
                Err(Error::argument(format!("{name} is {value:?}, expected an integer from {low} to {high}")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(vars: &'static [(&str, &str)]) -> Result<Environment> {
        let lookup = |name: &str| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into());
        Environment::from_lookup(lookup, NonZeroUsize::new(4).unwrap())
    }

    #[test]
    fn defaults_and_settings() {
        let default = with(&[("FLASHPACK_READ_THREADS", " ")]).unwrap();
        assert_eq!((default.eager, default.read_threads.get(), default.read_chunk_bytes), (false, 4, None));
        let set =
            with(&[("FLASHPACK_CPU_PARALLEL_READ", "On"), ("FLASHPACK_READ_CHUNK_BYTES", "65536")]).unwrap();
        assert_eq!((set.eager, set.read_chunk_bytes), (true, Some(65536)));
        let free = with(&[("FLASHPACK_READ_THREADS", "9"), ("FLASHPACK_NO_THREAD_CLAMP", "1")]).unwrap();
        assert_eq!((free.read_threads.get(), free.clamps_threads), (9, false));
        assert_eq!((default.shard_bytes, default.parallel_read, default.clamps_threads), (None, true, true));
        assert_eq!(with(&[("FLASHPACK_SHARD_BYTES", "7")]).unwrap().shard_bytes, NonZeroU64::new(7));
        let pinned = with(&[("FLASHPACK_PINNED_BYTES", "8388608")]).unwrap();
        assert_eq!((default.pinned_bytes, pinned.pinned_bytes), (None, NonZeroU64::new(8 << 20)));
        assert_eq!((default.timeline, with(&[("FLASHPACK_TIMELINE", "1")]).unwrap().timeline), (false, true));
        assert_eq!((default.numa, with(&[("FLASHPACK_NUMA", "0")]).unwrap().numa), (true, false));
        let waiting = |set: &Environment| (set.waiting_threads.get(), set.max_waiting_threads.get());
        assert_eq!((waiting(&default), waiting(&free)), ((16, 128), (9, 9)));
        let alone = with(&[("FLASHPACK_PARALLEL_READ", "0")]).unwrap();
        assert_eq!((alone.read_threads.get(), waiting(&alone)), (1, (1, 1)));
    }

    #[cfg(feature = "remote")]
    #[test]
    fn a_cache_has_a_folder_and_a_limit() {
        let cache = |folder: &'static str, limit: &'static str| {
            cache_from(|name| Some(if name == "FLASHPACK_CACHE" { folder } else { limit }.into()))
        };
        assert_eq!(cache_from(|_| None).unwrap(), (None, None));
        assert_eq!(cache("", " ").unwrap(), (None, None));
        assert_eq!(cache("/a b", "1048576").unwrap(), (Some("/a b".into()), Some(1 << 20)));
        for limit in ["1", "100GB", "-1"] {
            let error = cache("/a", limit).unwrap_err().to_string();
            assert!(error.contains("FLASHPACK_CACHE_BYTES") && error.contains(limit), "{error}");
        }
    }

    #[test]
    fn words_are_taken_in_any_case() {
        for (word, strategy) in [
            ("windows", "windows"),
            ("Contiguous", "contiguous"),
            (" WINDOWS ", "windows"),
            ("", "contiguous"),
        ] {
            let lookup = |key: &str| (key == "FLASHPACK_SHARD_STRATEGY").then(|| word.into());
            let environment = Environment::from_lookup(lookup, NonZeroUsize::MIN).unwrap();
            assert_eq!(environment.shard_strategy, strategy, "{word:?}");
        }
        assert_eq!(with(&[("FLASHPACK_DIRECT_IO", "AUTO")]).unwrap().direct_io, None);
    }

    #[test]
    fn malformed_values_name_their_variable() {
        for (name, value) in [
            ("FLASHPACK_SHARD_STRATEGY", "sideways"),
            ("FLASHPACK_SHARD_BYTES", "0"),
            ("FLASHPACK_PINNED_BYTES", "4096"),
            ("FLASHPACK_READ_THREADS", "0"),
            ("FLASHPACK_READ_THREADS", "many"),
            ("FLASHPACK_READ_CHUNK_BYTES", "-1"),
            ("FLASHPACK_CPU_PARALLEL_READ", "maybe"),
            ("FLASHPACK_NUMA", "1,3"),
        ] {
            let lookup = |key: &str| (key == name).then(|| value.into());
            let error = Environment::from_lookup(lookup, NonZeroUsize::MIN).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(value), "{error}");
        }
    }
}
