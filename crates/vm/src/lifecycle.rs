//! The life of one machine: told what happened and when, it says what is to be done next, and does nothing itself.
//!
//! ```text
//!  Off/Failed --Start--> Queued --Admitted--> Preparing --Prepared--> Launching --Launched--> Running
//!      ^                   |                     |                        |                    |   ^
//!      |                   Stop                  Stop                     Stop             Late|   |OnTime
//!      |                   v                     v                        v                    v   |
//!      +----Gone------- Stopping { Agent -> Acpi -> Force } <---Stop-----------------------  Paused
//! ```
//!
//! `Gone` (the process ended, or what was being prepared was given up) leads from everywhere to Off, or to Failed where nobody
//! wanted it. `Adopted` leads from Off to Running: a daemon that was restarted found the process. Each
//! wait of Stopping has a limit, after which the next harder means is used; the owner asks for [`Lifecycle::deadline`]
//! and sends [`Event::Tick`] then.

use std::time::{Duration, Instant};

/// How long a guest may take to shut down after its agent was asked, before its power button is pressed.
const AGENT_LIMIT: Duration = Duration::from_secs(60);
/// How long it may take after its power button was pressed, before it is killed.
const ACPI_LIMIT: Duration = Duration::from_secs(60);
/// How long a killed process may take before it is killed again.
const FORCE_LIMIT: Duration = Duration::from_secs(20);

/// Where a machine is in its life.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Not running.
    #[default]
    Off,
    /// Waits for memory.
    Queued,
    /// Its disks are being opened.
    Preparing,
    /// Its process is being started.
    Launching,
    /// Its processors run.
    Running {
        /// Whether its agent has answered.
        ready: bool,
    },
    /// Its processors are held.
    Paused {
        /// Why, for people.
        reason: String,
        /// Whether its agent had answered.
        ready: bool,
    },
    /// On its way down.
    Stopping {
        /// By which means.
        means: Means,
        /// When the next harder means is used.
        until: Instant,
    },
    /// Not running, although it should be.
    Failed {
        /// Why, for people.
        reason: String,
    },
}

/// How a machine is brought down, gentle to hard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Means {
    /// Its guest agent was asked.
    Agent,
    /// Its power button was pressed.
    Acpi,
    /// It was killed, or what was being prepared is being given up.
    Force,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It shall run.
    Start,
    /// It shall not run.
    Stop {
        /// Whether at once.
        force: bool,
    },
    /// There is memory for it.
    Admitted,
    /// Its disks are open.
    Prepared,
    /// Its process runs and its monitor answers.
    Launched,
    /// An earlier daemon's process was found.
    Adopted {
        /// Why its processors are held; none if they run.
        held: Option<String>,
    },
    /// Its agent answered.
    Ready,
    /// A block is late, or its disk cannot be written.
    Late {
        /// Why, for people.
        reason: String,
    },
    /// All blocks came.
    OnTime,
    /// Neither process nor preparation is there any more.
    Gone {
        /// What went wrong; none for a proper end.
        fault: Option<String>,
    },
    /// The agent cannot be asked.
    AgentSilent,
    /// Time has passed.
    Tick,
}

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Stand in line; answered by `Admitted`, or by `Gone` if that is refused.
    Queue,
    /// Open the disks; answered by `Prepared` or `Gone`.
    Prepare,
    /// Start the process; answered by `Launched` or `Gone`.
    Launch,
    /// Hold the processors.
    Hold,
    /// Let them go on.
    Resume,
    /// Ask the agent to shut the guest down; answered by `AgentSilent` or, in the end, `Gone`.
    AskAgent,
    /// Press the power button; answered, in the end, by `Gone`.
    PressPower,
    /// Leave the line, give up preparing, kill the process, whichever applies; answered by `Gone`.
    Kill,
    /// Give back memory, disks and lock: nothing is there any more.
    Release,
}

/// The life of one machine.
#[derive(Clone, Debug, Default)]
pub struct Lifecycle {
    state: State,
}

impl Lifecycle {
    /// Returns where it is.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Returns when [`Event::Tick`] is due.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Stopping { until, .. } => Some(until),
            _ => None,
        }
    }

    /// Takes what happened at `now` and returns what is to be done, in this order. What makes no sense where it is changes nothing.
    pub fn handle(&mut self, event: Event, now: Instant) -> Vec<Action> {
        match event {
            Event::Start => self.start(),
            Event::Stop { force } => self.stop(force, now),
            Event::Admitted => self.step(&State::Queued, State::Preparing, Action::Prepare),
            Event::Prepared => self.step(&State::Preparing, State::Launching, Action::Launch),
            Event::Launched if self.state == State::Launching => {
                self.state = State::Running { ready: false };
                Vec::new()
            }
            Event::Adopted { held } if self.is_down() => {
                self.state = match held {
                    Some(reason) => State::Paused { reason, ready: false },
                    None => State::Running { ready: false },
                };
                Vec::new()
            }
            Event::Ready => self.ready(),
            Event::Late { reason } => self.late(reason),
            Event::OnTime => self.on_time(),
            Event::Gone { fault } => self.gone(fault),
            Event::AgentSilent => self.harder(Means::Agent, now),
            Event::Tick => self.tick(now),
            Event::Launched | Event::Adopted { .. } => Vec::new(),
        }
    }

    /// Tells whether nothing is there: no process, no memory, no open disk.
    #[must_use]
    pub fn is_down(&self) -> bool {
        matches!(self.state, State::Off | State::Failed { .. })
    }

    fn start(&mut self) -> Vec<Action> {
        if !self.is_down() {
            return Vec::new();
        }
        self.state = State::Queued;
        vec![Action::Queue]
    }

    fn stop(&mut self, force: bool, now: Instant) -> Vec<Action> {
        match &self.state {
            State::Failed { .. } => {
                self.state = State::Off;
                Vec::new()
            }
            State::Stopping { means: Means::Force, .. } | State::Off => Vec::new(),
            State::Stopping { .. } if !force => Vec::new(),
            State::Running { .. } if !force => self.bring_down(Means::Agent, now),
            // A held guest cannot obey: it has to go on first, and the agent then answers in its time.
            State::Paused { .. } if !force => {
                let mut actions = vec![Action::Resume];
                actions.extend(self.bring_down(Means::Agent, now));
                actions
            }
            _ => self.bring_down(Means::Force, now),
        }
    }

    fn step(&mut self, from: &State, to: State, action: Action) -> Vec<Action> {
        if self.state != *from {
            return Vec::new();
        }
        self.state = to;
        vec![action]
    }

    fn ready(&mut self) -> Vec<Action> {
        if let State::Running { ready } | State::Paused { ready, .. } = &mut self.state {
            *ready = true;
        }
        Vec::new()
    }

    fn late(&mut self, reason: String) -> Vec<Action> {
        match &mut self.state {
            State::Running { ready } => {
                self.state = State::Paused { reason, ready: *ready };
                vec![Action::Hold]
            }
            State::Paused { reason: old, .. } => {
                *old = reason;
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    fn on_time(&mut self) -> Vec<Action> {
        let State::Paused { ready, .. } = self.state else { return Vec::new() };
        self.state = State::Running { ready };
        vec![Action::Resume]
    }

    fn gone(&mut self, fault: Option<String>) -> Vec<Action> {
        if self.is_down() {
            return Vec::new();
        }
        self.state = match (&self.state, fault) {
            (State::Stopping { .. }, _) | (_, None) => State::Off,
            (_, Some(reason)) => State::Failed { reason },
        };
        vec![Action::Release]
    }

    fn tick(&mut self, now: Instant) -> Vec<Action> {
        match self.state {
            State::Stopping { means, until } if now >= until => self.harder(means, now),
            _ => Vec::new(),
        }
    }

    /// Goes from one means to the next harder one.
    fn harder(&mut self, than: Means, now: Instant) -> Vec<Action> {
        match self.state {
            State::Stopping { means, .. } if means == than => {
                self.bring_down(if than == Means::Agent { Means::Acpi } else { Means::Force }, now)
            }
            _ => Vec::new(),
        }
    }

    fn bring_down(&mut self, means: Means, now: Instant) -> Vec<Action> {
        let (limit, action) = match means {
            Means::Agent => (AGENT_LIMIT, Action::AskAgent),
            Means::Acpi => (ACPI_LIMIT, Action::PressPower),
            Means::Force => (FORCE_LIMIT, Action::Kill),
        };
        self.state = State::Stopping { means, until: now + limit };
        vec![action]
    }
}

#[cfg(test)]
mod tests;
