//! Connections and credentials, each of one process: a child after fork has its own and leaves its parent's alone.

use std::{
    process,
    sync::{Arc, OnceLock},
};

use super::{
    agents::{Agents, Patience},
    cache::Budget,
    credentials::{Aws, Azure, Google, Kept},
};

/// What all objects share.
#[derive(Debug, Default)]
pub(super) struct Client {
    pub patience: Patience,
    first: OnceLock<Box<Process>>,
}

/// What belongs to one process. Those of its ancestors stay as they are: closing a connection would end theirs, too.
#[derive(Debug)]
pub(super) struct Process {
    id: u32,
    pub agents: Arc<Agents>,
    /// Memory for what is written to caches.
    pub budget: Budget,
    /// The credentials that were found last.
    pub aws: Kept<Aws>,
    pub google: Kept<Google>,
    pub azure: Kept<Azure>,
    next: OnceLock<Box<Process>>,
}

impl Client {
    pub(super) fn new(patience: Patience) -> Self {
        Self { patience, first: OnceLock::new() }
    }

    /// What belongs to this process.
    pub(super) fn process(&self) -> &Process {
        let id = process::id();
        let mut slot = &self.first;
        loop {
            let process = slot.get_or_init(|| Box::new(Process::new(id, &self.patience)));
            if process.id == id {
                return process;
            }
            slot = &process.next;
        }
    }
}

impl Process {
    fn new(id: u32, patience: &Patience) -> Self {
        let agents = Arc::new(Agents::new(patience.clone()));
        let (budget, aws, google, azure, next) = Default::default();
        Self { id, agents, budget, aws, google, azure, next }
    }
}
