//! What everybody may do next: writers, pruners, the reader, and the network and the mishaps that
//! come between them.
//!
//! A decision that leaves nothing behind but its record (expire, condemn, found bad, ends of runs and
//! holds) is made and appended in one step: since a record lands only at the head at which it was
//! decided, what lies in between makes no difference. Commits, announcements, sweeps, relocations and
//! holds are sent and land apart, since their actors go on from there.

use super::event::{Actor, Event, Named};
use super::explore::Machine;
use super::symmetry;
use super::world::{
    Append, Bounds, Flaw, Packs, Phase, Pruner, Reading, Record, World, Writer, each,
};

/// The protocol, in a bounded world, and perhaps with a flaw.
pub(crate) struct Protocol {
    pub(crate) bounds: Bounds,
    pub(crate) flaw: Option<Flaw>,
}

type Take<'a> = dyn FnMut(Event, Result<World, String>) + 'a;

impl Protocol {
    fn has(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    /// Lets a record land. Everybody else's records on the way are dead with it.
    fn append(&self, before: &World, actor: Actor, record: Record, take: &mut Take<'_>) {
        let mut after = *before;
        after.log.apply(record, &self.bounds);
        if let Record::Committed { segment, .. } = record
            && self.has(Flaw::NamesReused)
        {
            after.log.swept &= !segment;
        }
        if let Record::Swept { packs, .. } = record {
            after.doomed |= packs;
        }
        let landed = |own, append: &mut Append| match *append {
            Append::Sent(sent) if actor == own => *append = Append::Landed(sent),
            Append::Sent(_) if !self.has(Flaw::LogNotCreateOnly) => *append = Append::None,
            _ => {}
        };
        for (number, writer) in after.writers.iter_mut().enumerate() {
            landed(Actor::Writer(number), &mut writer.append);
        }
        for (number, pruner) in after.pruners.iter_mut().enumerate() {
            landed(Actor::Pruner(number), &mut pruner.append);
            // A sweep's writer deletes from now on, and so may anybody who reads the record.
            if let Append::Landed(record) = pruner.append {
                pruner.append = Append::None;
                if let Record::Relocated { segment } = record {
                    pruner.copy &= !segment;
                }
            }
        }
        landed(Actor::Reader, &mut after.reader.append);
        match actor {
            Actor::Dead(number) if self.has(Flaw::LogNotCreateOnly) => {
                after.orphaned[number] = None;
            }
            _ if self.has(Flaw::LogNotCreateOnly) => {}
            _ => after.orphaned = [None; 2],
        }
        let result = self.judge_append(before, &after, record);
        take(Event::Appended { actor, record }, result.map(|()| after));
    }

    /// What an append must never do, whatever comes later.
    fn judge_append(&self, before: &World, after: &World, record: Record) -> Result<(), String> {
        if let Record::Swept { packs, .. } = record {
            let sound = |world: &World, places: Packs| places & !world.log.lost() != 0;
            for (point, named) in after.log.live() {
                for chunk in self.bounds.chunks() {
                    let was = sound(before, before.lasting(named, chunk));
                    if was && !sound(after, after.lasting(named, chunk)) {
                        return Err(format!(
                            "the sweep takes the last sound place of a chunk of point {point}"
                        ));
                    }
                }
            }
            if packs & before.log.announced() != 0 {
                return Err("the sweep takes a pack of an announced run".to_owned());
            }
        }
        if let Record::Committed { point, places, .. } = record
            && places & before.log.bad != 0
        {
            let bad = Named(places & before.log.bad);
            return Err(format!(
                "point {point} is committed with{bad}, which is bad"
            ));
        }
        Ok(())
    }

    fn network(&self, world: &World, take: &mut Take<'_>) {
        for pack in each(world.sent & !world.stored) {
            let mut after = *world;
            after.stored |= pack;
            after.landed |= pack;
            take(Event::PutLands { pack }, Ok(after));
        }
        for pack in each(world.doomed & world.stored) {
            let mut after = *world;
            after.stored &= !pack;
            take(Event::DeleteLands { pack }, Ok(after));
        }
        for (number, record) in world.orphaned.iter().enumerate() {
            if let Some(record) = record {
                self.append(world, Actor::Dead(number), *record, take);
            }
        }
    }

    fn send(&self, world: &World, actor: Actor, record: Record, take: &mut Take<'_>) {
        let mut after = *world;
        let append = match actor {
            Actor::Writer(number) => &mut after.writers[number].append,
            Actor::Pruner(number) => &mut after.pruners[number].append,
            _ => &mut after.reader.append,
        };
        *append = Append::Sent(record);
        if let Record::Swept { packs, .. } = record
            && self.has(Flaw::DeleteBeforeSweep)
        {
            after.doomed |= packs;
        }
        take(Event::Sends { actor, record }, Ok(after));
    }

    fn writer(&self, world: &World, number: usize, take: &mut Take<'_>) {
        let writer = &world.writers[number];
        let actor = Actor::Writer(number);
        match writer.append {
            Append::Sent(record) => self.append(world, actor, record, take),
            Append::Landed(record) => {
                let mut after = *world;
                Self::has_appended(&mut after.writers[number], record);
                take(Event::HearsOfAppend { actor }, Ok(after));
            }
            Append::None => match writer.phase {
                Phase::Idle if writer.points_left > 0 => self.choose(world, number, take),
                Phase::Idle => {}
                Phase::Storing => {
                    if writer.own & !world.landed == 0 || self.has(Flaw::CommitBeforeStored) {
                        let mut after = *world;
                        after.writers[number].phase = Phase::Stored;
                        take(Event::HearsAcks { writer: number }, Ok(after));
                    }
                }
                Phase::Stored => self.publish(world, number, take),
            },
        }
        if world.crashes > 0 && *writer != self.bounds.first().writers[number] {
            for cache_lost in [false, true] {
                self.crash_writer(world, number, cache_lost, take);
            }
        }
    }

    fn has_appended(writer: &mut Writer, record: Record) {
        writer.append = Append::None;
        if let Record::Committed { segment, .. } = record {
            writer.phase = Phase::Idle;
            writer.places = 0;
            writer.own = 0;
            writer.orphans &= !segment;
            writer.announced = false;
            writer.points_named += 1;
            writer.points_left -= 1;
        } else {
            writer.announced = true;
        }
    }

    /// A pass over the disks: for each chunk a known pack, or a new one. A writer that looked at an
    /// older head is one that chose earlier.
    fn choose(&self, world: &World, number: usize, take: &mut Take<'_>) {
        let writer = &world.writers[number];
        let mut unusable = world.log.unusable() & !writer.forgotten;
        if self.has(Flaw::DedupeAgainstCondemned) {
            unusable = world.log.lost();
        }
        if self.has(Flaw::DedupeAgainstSwept) {
            unusable = 0;
        }
        // The catalogue names what segments name; the local index also what this host has stored.
        let orphans = writer.orphans & !unusable & !world.log.indexed;
        let usable = (world.log.indexed | orphans) & !unusable;
        let mut choices: Vec<(Packs, Packs, u8)> = vec![(0, 0, writer.names_drawn)];
        for chunk in self.bounds.chunks() {
            let mut longer = Vec::new();
            for (known, new, drawn) in choices {
                for pack in each(usable & chunk) {
                    longer.push((known | pack, new, drawn));
                }
                if usable & chunk == 0 {
                    let names = each(self.bounds.packs_of_writer(number));
                    let fresh = names.skip(drawn.into()).find(|pack| pack & chunk != 0);
                    let again = each(writer.orphans & world.log.swept & chunk).next();
                    if let Some(again) = again.filter(|_| self.has(Flaw::NamesReused)) {
                        longer.push((known, new | again, drawn));
                    } else if let Some(pack) = fresh {
                        let own = self.bounds.packs_of_writer(number);
                        let drawn = pack.trailing_zeros() - own.trailing_zeros() + 1;
                        longer.push((known, new | pack, u8::try_from(drawn).unwrap()));
                    }
                }
            }
            choices = longer;
        }
        for (known, new, drawn) in choices {
            let mut after = *world;
            // Orphans go into the new run's segment, whether its point needs them or not.
            after.writers[number] = Writer {
                phase: match new {
                    0 => Phase::Stored,
                    _ => Phase::Storing,
                },
                places: known | new,
                own: new | orphans,
                names_drawn: drawn,
                // A name that is used again is taken for good from now on.
                forgotten: writer.forgotten | new & world.log.swept,
                ..*writer
            };
            after.sent |= new;
            after.landed &= !(new & world.sent);
            let event = Event::Chooses {
                writer: number,
                known,
                new,
            };
            take(event, Ok(after));
        }
    }

    /// Everything is durable: announce it, or commit, or see that the disks must be read again.
    fn publish(&self, world: &World, number: usize, take: &mut Take<'_>) {
        let writer = &world.writers[number];
        let actor = Actor::Writer(number);
        if self.bounds.announce && writer.own != 0 && !writer.announced {
            let record = Record::Announced {
                writer: u8::try_from(number).unwrap(),
                segment: writer.own,
            };
            self.send(world, actor, record, take);
        }
        // `replicate::passes` of the engine, right before the append.
        let lost = match self.flaw {
            Some(Flaw::CommitUnchecked) => world.log.bad,
            Some(Flaw::CommitUncheckedForBad) => world.log.swept,
            _ => world.log.lost(),
        };
        let lost = lost & !writer.forgotten;
        if writer.places & lost == 0 {
            let record = Record::Committed {
                point: self.bounds.point_of(number, writer.points_named),
                places: writer.places,
                segment: writer.own,
            };
            self.send(world, actor, record, take);
        } else {
            let mut after = *world;
            after.writers[number] = Writer {
                phase: Phase::Idle,
                places: 0,
                own: 0,
                orphans: writer.orphans | writer.own,
                ..*writer
            };
            take(Event::StartsOver { writer: number }, Ok(after));
        }
    }

    /// The process dies, or gives up: for the others it is the same. What it had sent stays sent.
    fn crash_writer(&self, world: &World, number: usize, cache_lost: bool, take: &mut Take<'_>) {
        let mut after = *world;
        let writer = &mut after.writers[number];
        let sent = match writer.append {
            Append::Sent(Record::Announced { segment, .. }) => {
                Some(Record::AnnouncedByDead { segment })
            }
            Append::Sent(record) => Some(record),
            _ => None,
        };
        let committing = matches!(
            writer.append,
            Append::Sent(Record::Committed { .. }) | Append::Landed(Record::Committed { .. })
        );
        *writer = Writer {
            phase: Phase::Idle,
            append: Append::None,
            places: 0,
            own: 0,
            // Only what the store has acknowledged is remembered.
            orphans: match cache_lost {
                true => 0,
                false => (writer.orphans | writer.own) & world.landed & !world.log.indexed,
            },
            forgotten: match self.has(Flaw::CheckpointForgetsSwept) && cache_lost {
                true => world.log.swept,
                false => writer.forgotten,
            },
            announced: false,
            points_named: writer.points_named + u8::from(committing),
            ..*writer
        };
        after.log.dead_runs |= std::mem::take(&mut after.log.runs[number]);
        Self::bury(&mut after, sent);
        after.crashes -= 1;
        let actor = Actor::Writer(number);
        take(Event::Crashes { actor, cache_lost }, Ok(after));
    }

    /// Keeps what a dead sender has sent on its way.
    fn bury(world: &mut World, sent: Option<Record>) {
        if sent.is_some() {
            let place = world.orphaned.iter_mut().find(|place| place.is_none());
            *place.expect("as many places as crashes") = sent;
        }
    }

    fn pruner(&self, world: &World, number: usize, take: &mut Take<'_>) {
        let pruner = &world.pruners[number];
        let actor = Actor::Pruner(number);
        if let Append::Sent(record) = pruner.append {
            self.append(world, actor, record, take);
            if world.crashes > 0 {
                let mut after = *world;
                after.pruners[number] = Pruner {
                    append: Append::None,
                    copy: 0,
                    stale: None,
                };
                Self::bury(&mut after, Some(record));
                after.crashes -= 1;
                let cache_lost = false;
                take(Event::Crashes { actor, cache_lost }, Ok(after));
            }
            return;
        }
        self.sweep(world, number, take);
        self.relocate(world, number, take);
        // What follows could be done by any of them.
        if number > 0 {
            return;
        }
        let listed = world.stored | world.log.indexed;
        // Unbounded pruning among writers would use up the names that the model has for packs.
        let all_done = self.bounds.clean && world.writers.iter().all(|w| w.points_left == 0);
        if world.condemnings > 0 || all_done {
            for pack in each(listed & !world.log.swept & !world.log.condemned) {
                let mut before = *world;
                before.condemnings = before.condemnings.saturating_sub(1);
                self.append(&before, actor, Record::Condemned { packs: pack }, take);
            }
        }
        for (point, _) in world.log.live() {
            let held = world.log.hold == Some(point) && !self.has(Flaw::HoldUnheeded);
            if world.expiries > 0 && !held {
                let mut before = *world;
                before.expiries -= 1;
                self.append(&before, actor, Record::Expired { point }, take);
            }
        }
        if !self.has(Flaw::OnlyWriterEndsRun) {
            if world.log.dead_runs != 0 {
                self.append(world, actor, Record::DeadRunsEnded, take);
            }
            // Nobody can tell a dead run from a slow one.
            for (writer, run) in (0_u8..).zip(world.log.runs) {
                if run != 0 {
                    self.append(world, actor, Record::RunEnded { writer }, take);
                }
            }
        }
    }

    fn sweep(&self, world: &World, number: usize, take: &mut Take<'_>) {
        let actor = Actor::Pruner(number);
        if self.has(Flaw::SweepFromStaleHead) {
            let mut after = *world;
            let stale = &mut after.pruners[number].stale;
            if let Some((packs, rescued)) = stale.take() {
                let mut sent = after;
                let record = Record::Swept { packs, rescued };
                sent.pruners[number].append = Append::Sent(record);
                take(Event::Sends { actor, record }, Ok(sent));
            } else if world.log.condemned != 0 {
                let (packs, rescued) = world.log.decide_sweep(&self.bounds, self.flaw);
                *stale = Some((packs, rescued));
                let event = Event::PlansSweep {
                    pruner: number,
                    packs,
                    rescued,
                };
                take(event, Ok(after));
            }
            return;
        }
        if world.log.condemned != 0 {
            let (packs, rescued) = world.log.decide_sweep(&self.bounds, self.flaw);
            self.send(world, actor, Record::Swept { packs, rescued }, take);
        }
    }

    /// Copies a chunk into another pack, and tells where it lies when the store has acknowledged it.
    fn relocate(&self, world: &World, number: usize, take: &mut Take<'_>) {
        let copy = world.pruners[number].copy;
        if copy == 0 {
            let drawn = self.bounds.relocations - world.relocations;
            if let Some(pack) = each(self.bounds.copies()).nth(drawn.into()) {
                let mut after = *world;
                after.pruners[number].copy = pack;
                after.sent |= pack;
                after.relocations -= 1;
                take(
                    Event::Copies {
                        pruner: number,
                        pack,
                    },
                    Ok(after),
                );
            }
        } else if world.landed & copy != 0 {
            // As everybody who names a pack: not one that was swept meanwhile.
            if copy & world.log.lost() == 0 {
                let record = Record::Relocated { segment: copy };
                self.send(world, Actor::Pruner(number), record, take);
            } else {
                let mut after = *world;
                after.pruners[number].copy = 0;
                take(
                    Event::Copies {
                        pruner: number,
                        pack: 0,
                    },
                    Ok(after),
                );
            }
        }
    }

    fn reader(&self, world: &World, take: &mut Take<'_>) {
        let reader = &world.reader;
        let actor = Actor::Reader;
        let begin = |point| {
            let mut after = *world;
            after.reader.append = Append::None;
            after.reader.reading = Reading::Point(point);
            after.reader.index = world.log.indexed;
            after
        };
        match (reader.reading, reader.append) {
            (_, Append::Sent(record)) => self.append(world, actor, record, take),
            (_, Append::Landed(Record::HoldSet { point })) => {
                take(Event::HearsOfAppend { actor }, Ok(begin(point)));
            }
            (Reading::NotYet, _) => {
                for (point, _) in world.log.live() {
                    if self.has(Flaw::ReadWithoutHold) {
                        take(Event::BeginsToRead { point }, Ok(begin(point)));
                    } else {
                        self.send(world, actor, Record::HoldSet { point }, take);
                    }
                }
                if self.has(Flaw::HoldUnchecked) {
                    // It looked for its point before, at some head or other.
                    self.send(world, actor, Record::HoldSet { point: 0 }, take);
                }
            }
            (Reading::Point(point), _) => {
                let event = Event::Reads { point };
                take(event, self.read(world, point));
            }
            (Reading::Done, _) => {
                if world.log.hold.is_some() {
                    self.append(world, actor, Record::HoldLifted, take);
                }
            }
        }
    }

    /// Each chunk from where the page says, or else from where the index says: the index at this
    /// head, since a reader that misses a chunk reads the log before it gives up.
    fn read(&self, world: &World, point: u8) -> Result<World, String> {
        let named = world.log.points[usize::from(point)].places;
        for chunk in self.bounds.chunks() {
            let index = match self.flaw {
                Some(Flaw::ReadByHintsOnly) => 0,
                Some(Flaw::ReadWithoutRefresh) => world.reader.index,
                _ => world.log.indexed & !world.log.swept,
            };
            if (named | index) & chunk & world.stored == 0 {
                return Err(format!(
                    "the reader of point {point} finds a chunk nowhere: its page names{}",
                    Named(named & chunk)
                ));
            }
        }
        let mut after = *world;
        after.reader.reading = Reading::Done;
        after.reader.index = 0;
        Ok(after)
    }

    fn claim(&self, world: &World, take: &mut Take<'_>) {
        if world.claims > 0 {
            for pack in each(world.log.indexed & !world.log.lost()) {
                let mut before = *world;
                before.claims -= 1;
                let record = Record::FoundBad { packs: pack };
                self.append(&before, Actor::Operator, record, take);
            }
        }
    }
}

impl Machine for Protocol {
    type State = World;
    type Event = Event;

    fn first(&self) -> World {
        self.bounds.first()
    }

    fn steps(&self, world: &World, take: &mut Take<'_>) {
        self.network(world, take);
        for number in 0..self.bounds.writers {
            self.writer(world, number, take);
        }
        for number in 0..self.bounds.pruners {
            self.pruner(world, number, take);
        }
        self.reader(world, take);
        self.claim(world, take);
    }

    fn canonical(&self, world: &World) -> World {
        symmetry::canonical(&self.bounds, world)
    }

    fn violation(&self, world: &World) -> Option<String> {
        for (point, named) in world.log.live() {
            for chunk in self.bounds.chunks() {
                if world.lasting(named, chunk) == 0 {
                    return Some(format!(
                        "point {point} is live, and a chunk of it is nowhere for good: its page names{}, of which{} is stored and{} is being deleted",
                        Named(named & chunk),
                        Named(named & chunk & world.stored),
                        Named(named & chunk & world.doomed),
                    ));
                }
            }
        }
        None
    }

    fn is_goal(&self, world: &World) -> bool {
        let done = |append| append == Append::None;
        world
            .writers
            .iter()
            .all(|writer| writer.points_left == 0 && done(writer.append))
            && world.pruners.iter().all(|pruner| done(pruner.append))
            && (world.reader.reading != Reading::NotYet || world.log.live().next().is_none())
            && world.log.hold.is_none()
            && (!self.bounds.clean || world.garbage(&self.bounds) == 0)
    }
}
