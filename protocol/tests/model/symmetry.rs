//! Writers are alike, and so are pruners: of worlds that differ only in who is who, one stands for
//! all.

use super::world::{Append, Bounds, POINTS_MAX, Packs, Reading, Record, World};

/// The smallest of all worlds that are the same but for names.
pub(crate) fn canonical(bounds: &Bounds, world: &World) -> World {
    let orders: &[[usize; 3]] = match bounds.writers {
        0 | 1 => &[[0, 1, 2]],
        2 => &[[0, 1, 2], [1, 0, 2]],
        _ => &[
            [0, 1, 2],
            [0, 2, 1],
            [1, 0, 2],
            [1, 2, 0],
            [2, 0, 1],
            [2, 1, 0],
        ],
    };
    let renamed = orders
        .iter()
        .map(|order| Renaming { bounds, order }.world(world));
    renamed.min().expect("there is always the same order")
}

/// `order[new]` is who goes by that name from now on.
struct Renaming<'a> {
    bounds: &'a Bounds,
    order: &'a [usize; 3],
}

impl Renaming<'_> {
    fn world(&self, old: &World) -> World {
        let mut new = *old;
        if *self.order != [0, 1, 2] {
            self.rename(old, &mut new);
        }
        new.pruners[..self.bounds.pruners].sort_unstable();
        new.orphaned.sort_unstable();
        new
    }

    fn rename(&self, old: &World, new: &mut World) {
        for number in 0..POINTS_MAX {
            let mut point = old.log.points[number];
            point.places = self.packs(point.places);
            new.log.points[usize::from(self.point(u8::try_from(number).unwrap()))] = point;
        }
        for (number, before) in self.order.iter().enumerate().take(self.bounds.writers) {
            new.log.runs[number] = old.log.runs[*before];
            new.writers[number] = old.writers[*before];
        }
        for packs in new.log.runs.iter_mut().chain([
            &mut new.log.indexed,
            &mut new.log.condemned,
            &mut new.log.swept,
            &mut new.log.bad,
            &mut new.log.dead_runs,
            &mut new.sent,
            &mut new.landed,
            &mut new.stored,
            &mut new.doomed,
            &mut new.reader.index,
        ]) {
            *packs = self.packs(*packs);
        }
        for writer in &mut new.writers {
            writer.places = self.packs(writer.places);
            writer.own = self.packs(writer.own);
            writer.orphans = self.packs(writer.orphans);
            writer.forgotten = self.packs(writer.forgotten);
            writer.append = self.append(writer.append);
        }
        for pruner in &mut new.pruners {
            pruner.append = self.append(pruner.append);
            pruner.stale = pruner
                .stale
                .map(|(swept, rescued)| (self.packs(swept), self.packs(rescued)));
        }
        new.reader.append = self.append(new.reader.append);
        if let Reading::Point(point) = &mut new.reader.reading {
            *point = self.point(*point);
        }
        new.log.hold = new.log.hold.map(|point| self.point(point));
        for record in &mut new.orphaned {
            *record = record.map(|record| self.record(record));
        }
    }

    fn packs(&self, old: Packs) -> Packs {
        let mut new = old;
        for (number, before) in self.order.iter().enumerate().take(self.bounds.writers) {
            let (to, from) = (
                self.bounds.packs_of_writer(number),
                self.bounds.packs_of_writer(*before),
            );
            let moved = (old & from) >> from.trailing_zeros() << to.trailing_zeros();
            new = new & !to | moved;
        }
        new
    }

    fn writer(&self, old: u8) -> u8 {
        let new = self.order.iter().position(|who| *who == usize::from(old));
        u8::try_from(new.unwrap()).unwrap()
    }

    fn point(&self, old: u8) -> u8 {
        let each = self.bounds.points_each();
        if old == 0 || usize::from((old - 1) / each) >= self.bounds.writers {
            return old;
        }
        let writer = self.writer((old - 1) / each);
        self.bounds.point_of(writer.into(), (old - 1) % each)
    }

    fn append(&self, append: Append) -> Append {
        match append {
            Append::None => Append::None,
            Append::Sent(record) => Append::Sent(self.record(record)),
            Append::Landed(record) => Append::Landed(self.record(record)),
        }
    }

    fn record(&self, old: Record) -> Record {
        let mut new = old;
        match &mut new {
            Record::Committed {
                point,
                places,
                segment,
            } => {
                *point = self.point(*point);
                *places = self.packs(*places);
                *segment = self.packs(*segment);
            }
            Record::Announced { writer, segment } => {
                *writer = self.writer(*writer);
                *segment = self.packs(*segment);
            }
            Record::RunEnded { writer } => *writer = self.writer(*writer),
            Record::Expired { point } | Record::HoldSet { point } => *point = self.point(*point),
            Record::Swept { packs, rescued } => {
                *packs = self.packs(*packs);
                *rescued = self.packs(*rescued);
            }
            Record::AnnouncedByDead { segment: packs }
            | Record::Relocated { segment: packs }
            | Record::Condemned { packs }
            | Record::FoundBad { packs } => *packs = self.packs(*packs),
            Record::DeadRunsEnded | Record::HoldLifted => {}
        }
        new
    }
}
