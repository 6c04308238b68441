//! Explores a machine of states exhaustively, breadth first: every state that can be reached, each
//! once, up to symmetry. It knows nothing of what the states mean.
//!
//! Two questions are answered. *Safety*: is a state or a step reachable that the machine itself calls
//! a violation? The trace it prints is a shortest one. *Progress*: can the goal be reached from every
//! reachable state? A state from which it cannot is a deadlock or a livelock.

use std::collections::HashMap;
use std::fmt::Display;
use std::hash::{BuildHasherDefault, Hash, Hasher};

/// States beyond which an exploration is given up: it would no longer be a test.
const STATES_MAX: usize = 4_000_000;

/// A machine of states.
pub(crate) trait Machine {
    type State: Copy + Eq + Hash;
    /// What happened, in words.
    type Event: Display;

    fn first(&self) -> Self::State;

    /// All that can happen next. An error is a violation that lies in the step itself.
    fn steps(
        &self,
        state: &Self::State,
        take: &mut dyn FnMut(Self::Event, Result<Self::State, String>),
    );

    /// One state for all that differ only in names.
    fn canonical(&self, state: &Self::State) -> Self::State;

    /// What is wrong with the state.
    fn violation(&self, state: &Self::State) -> Option<String>;

    /// True where everybody has done what they wanted to.
    fn is_goal(&self, state: &Self::State) -> bool;
}

/// What an exploration came to.
pub(crate) struct Explored {
    pub(crate) states: usize,
    pub(crate) steps: usize,
}

/// A violation, or a state from which the goal cannot be reached, and the way there.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) what: String,
    pub(crate) trace: Vec<String>,
}

impl Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (number, event) in (1..).zip(&self.trace) {
            writeln!(f, "{number:3}. {event}")?;
        }
        write!(f, "  => {}", self.what)
    }
}

/// Visits every reachable state.
pub(crate) fn explore<M: Machine>(machine: &M) -> Result<Explored, Found> {
    let mut graph = Graph::default();
    graph.enter(machine.canonical(&machine.first()), 0);
    let mut next = 0;
    while let Some(&state) = graph.states.get(next) {
        let here = u32::try_from(next).unwrap();
        if let Some(what) = machine.violation(&state) {
            let trace = graph.trace(machine, here, None);
            return Err(Found { what, trace });
        }
        let mut wrong = None;
        machine.steps(&state, &mut |_, after| match after {
            Ok(after) => {
                let there = graph.enter(machine.canonical(&after), here);
                graph.targets.push(there);
            }
            Err(what) => wrong = wrong.take().or(Some(what)),
        });
        if let Some(what) = wrong {
            let trace = graph.trace(machine, here, Some(&what));
            return Err(Found { what, trace });
        }
        graph.ends.push(u32::try_from(graph.targets.len()).unwrap());
        next += 1;
        assert!(graph.states.len() < STATES_MAX, "the bounds are too wide");
    }
    if let Some(stuck) = graph.stuck(machine) {
        let mut trace = graph.trace(machine, stuck, None);
        trace.push("…".to_owned());
        let what = "from here nobody's wishes can come true any more".to_owned();
        return Err(Found { what, trace });
    }
    Ok(Explored {
        states: graph.states.len(),
        steps: graph.targets.len(),
    })
}

/// The states seen so far, numbered in the order of their first visit, and the steps between them.
struct Graph<S> {
    states: Vec<S>,
    numbers: HashMap<S, u32, BuildHasherDefault<FastHasher>>,
    /// From which state each was reached first.
    before: Vec<u32>,
    /// Where the steps lead, state after state; `ends` says where each state's steps end.
    targets: Vec<u32>,
    ends: Vec<u32>,
}

impl<S> Default for Graph<S> {
    fn default() -> Self {
        Self {
            states: Vec::new(),
            numbers: HashMap::default(),
            before: Vec::new(),
            targets: Vec::new(),
            ends: Vec::new(),
        }
    }
}

impl<S: Copy + Eq + Hash> Graph<S> {
    fn enter(&mut self, state: S, before: u32) -> u32 {
        let fresh = u32::try_from(self.states.len()).unwrap();
        let number = *self.numbers.entry(state).or_insert(fresh);
        if number == fresh {
            self.states.push(state);
            self.before.push(before);
        }
        number
    }

    /// The steps to a state, told with one set of names: the canonical states on the way only say
    /// which step was taken. `last` is a violation in a step out of it.
    fn trace<M: Machine<State = S>>(
        &self,
        machine: &M,
        number: u32,
        last: Option<&str>,
    ) -> Vec<String> {
        let mut way = vec![number];
        while let Some(&number) = way.last()
            && number != 0
        {
            way.push(self.before[number as usize]);
        }
        way.reverse();
        let mut state = machine.first();
        let mut trace = Vec::new();
        for number in &way[1..] {
            let wanted = self.states[*number as usize];
            let mut found = None;
            machine.steps(&state, &mut |event, after| {
                if let Ok(after) = after
                    && found.is_none()
                    && machine.canonical(&after) == wanted
                {
                    found = Some((event.to_string(), after));
                }
            });
            let (event, after) = found.expect("the way that was gone before");
            trace.push(event);
            state = after;
        }
        if let Some(last) = last {
            machine.steps(&state, &mut |event, after| {
                if after.is_err_and(|what| what == last) {
                    trace.push(event.to_string());
                }
            });
        }
        trace
    }

    /// The first state from which no goal can be reached.
    fn stuck<M: Machine<State = S>>(&self, machine: &M) -> Option<u32> {
        // The steps backwards: counted, then placed.
        let count = self.states.len();
        let mut ends = vec![0_u32; count + 1];
        for target in &self.targets {
            ends[*target as usize + 1] += 1;
        }
        for number in 0..count {
            ends[number + 1] += ends[number];
        }
        let mut place = ends.clone();
        let mut sources = vec![0_u32; self.targets.len()];
        let mut start = 0;
        for (source, end) in (0_u32..).zip(&self.ends) {
            for target in &self.targets[start..*end as usize] {
                let at = &mut place[*target as usize];
                sources[*at as usize] = source;
                *at += 1;
            }
            start = *end as usize;
        }
        let mut reaches: Vec<bool> = self.states.iter().map(|s| machine.is_goal(s)).collect();
        let mut todo: Vec<usize> = (0..count).filter(|number| reaches[*number]).collect();
        while let Some(number) = todo.pop() {
            for source in &sources[ends[number] as usize..ends[number + 1] as usize] {
                let source = *source as usize;
                if !reaches[source] {
                    reaches[source] = true;
                    todo.push(source);
                }
            }
        }
        let stuck = reaches.iter().position(|reaches| !reaches)?;
        u32::try_from(stuck).ok()
    }
}

/// Fast and good enough for states of a few words; nobody chooses them to collide.
#[derive(Default)]
pub(crate) struct FastHasher(u64);

impl FastHasher {
    fn mix(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}

impl Hasher for FastHasher {
    fn write(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            self.mix(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.mix(value.into());
    }

    fn write_u16(&mut self, value: u16) {
        self.mix(value.into());
    }

    fn write_isize(&mut self, value: isize) {
        self.mix(value.cast_unsigned() as u64);
    }

    fn finish(&self) -> u64 {
        // The table takes its bits from both ends.
        self.0 ^ (self.0 >> 29)
    }
}
