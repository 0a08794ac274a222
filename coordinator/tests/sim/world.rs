//! The world: one coordinator that can be killed, sites with journals, a network that loses what it likes,
//! and a disk whose writes can fail, or fail and persist all the same.

mod oracles;

use falaj_core::{
    gate::{Verdict, patience::Progress},
    id::{Digest, RoundId, SiteId},
    round::{AnyRound, Effect, Event, Phase, Record, Refusal, RoundSpec, UpdateRef, step},
    time::Timestamp,
};
use std::collections::{BTreeMap, BTreeSet};

/// Sites in the world.
const SITES: u8 = 4;
/// Rounds that the study plans.
const ROUNDS: u32 = 3;
/// Sites without which no round closes.
const MIN_SITES: u32 = 2;
/// Tries of one round.
const ATTEMPTS: u32 = 4;

/// Whether a round's candidate is evaluated: some are, the last always.
const fn evaluates(round: u32) -> bool {
    round.is_multiple_of(2) || round == ROUNDS
}

/// How a write to the disk goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disk {
    Good,
    /// The write fails and nothing is there.
    Fails,
    /// The write fails, and yet it is there.
    FailsYetPersists,
}

/// One thing that happens.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    /// A site connects, or connects again.
    Connect(u8),
    /// A site does its task and keeps the sealed update.
    Train(u8),
    /// A site offers what it kept; the request or the answer may be lost.
    Send { site: u8, lose_request: bool, lose_answer: bool },
    /// A site offers another update for a round that it has one for.
    SendDifferent(u8),
    /// A site offers an update for the open round, whether it has a seat, a task, or has declined.
    SendUnasked(u8),
    /// A site declines.
    Decline(u8),
    /// A site counts about the candidate that it was asked about, and keeps that.
    Count(u8),
    /// A site answers with the counts that it kept; the request or the answer may be lost.
    Answer { site: u8, lose_request: bool, lose_answer: bool },
    /// A site that has answered says something else.
    AnswerDifferent(u8),
    /// A site sends counts for the open try, whether it was asked, has trained, or has declined.
    AnswerUnasked(u8),
    /// Time passes, in milliseconds.
    Pass(u64),
    /// The coordinator is killed and starts again.
    Kill,
    /// A site is killed; its journal stays.
    KillSite(u8),
    /// From now on writes go like this.
    Disk(Disk),
}

/// A small generator with a fixed sequence (SplitMix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }
}

/// The operations of a seed.
pub(crate) fn ops(seed: u64, length: usize) -> Vec<Op> {
    let mut dice = Dice(seed);
    (0..length)
        .map(|_| {
            let site = u8::try_from(dice.roll(u64::from(SITES))).unwrap_or(0);
            match dice.roll(30) {
                0..4 => Op::Connect(site),
                4..8 => Op::Train(site),
                8..13 => Op::Send {
                    site,
                    lose_request: dice.roll(6) == 0,
                    lose_answer: dice.roll(4) == 0,
                },
                13 => Op::SendDifferent(site),
                14 => Op::Decline(site),
                15 | 16 => Op::Pass(dice.roll(400)),
                17 => Op::Kill,
                18 => Op::KillSite(site),
                19 => Op::SendUnasked(site),
                20..23 => Op::Count(site),
                23..27 => Op::Answer {
                    site,
                    lose_request: dice.roll(6) == 0,
                    lose_answer: dice.roll(4) == 0,
                },
                27 => Op::AnswerDifferent(site),
                28 => Op::AnswerUnasked(site),
                _ => Op::Disk(match dice.roll(4) {
                    0 => Disk::Fails,
                    1 => Disk::FailsYetPersists,
                    _ => Disk::Good,
                }),
            }
        })
        .collect()
}

/// What survives a kill of the coordinator.
#[derive(Clone)]
struct Durable {
    round: AnyRound,
    version: u64,
    log: Vec<Record>,
    model: Digest,
    models: u32,
    over: bool,
}

/// What a site is asked to count about: the round, its try, and the candidate.
type Asked = (u32, u32, Digest);

/// What a site keeps over its own kill.
#[derive(Default)]
struct Journal {
    /// Sealed updates by round and base: what is sent again is these very bytes.
    sealed: BTreeMap<(u32, Digest), UpdateRef>,
    /// Receipts that the site holds.
    receipts: BTreeSet<(u32, Digest)>,
    /// What it counted, and paid for, by what it was asked: whatever is asked again is answered with this.
    counts: BTreeMap<Asked, Digest>,
    /// Those of its answers that were taken, as it was told.
    taken: BTreeSet<Asked>,
}

/// The world.
pub(crate) struct World {
    disk: Durable,
    /// What the running coordinator believes; equal to the disk unless a write failed and persisted.
    memory: Durable,
    owed: Vec<Effect>,
    disk_mood: Disk,
    now: i64,
    connected: BTreeSet<u8>,
    tasks: BTreeMap<u8, (u32, Digest)>,
    /// What each site was asked to count about last.
    asked: BTreeMap<u8, Asked>,
    journals: Vec<Journal>,
    /// Updates and counts that were refused: they may be in no sum.
    refused: BTreeSet<Digest>,
    /// Counts that were ever made, with their site, round and try.
    counted: BTreeMap<Digest, (u8, u32, u32)>,
    /// What was offered without being asked for, each of which is another.
    offers: u64,
    longest_log: usize,
}

fn site(n: u8) -> SiteId {
    format!("spiffe://sim/ae-on/ae-az/site/s-{n}").parse().expect("a site")
}

fn planned(number: u32, attempt: u32, base: Digest) -> AnyRound {
    let spec = RoundSpec {
        base,
        min_sites: MIN_SITES,
        max_sites: u32::from(SITES),
        expected_sites: u32::from(SITES),
        deadline_ms: 1_000,
        grace_ms: 200,
        attempt,
        masked: false,
        members: Vec::new(),
        evaluates: evaluates(number),
        good: Digest::of(b"base"),
        progress: Progress::default(),
    };
    AnyRound::planned(RoundId { study: "sim".parse().expect("a study"), number }, spec)
}

impl World {
    pub(crate) fn new() -> Self {
        let model = Digest::of(b"first");
        let disk = Durable {
            round: planned(1, 0, model),
            version: 0,
            log: Vec::new(),
            model,
            models: 0,
            over: false,
        };
        let mut this = Self {
            memory: disk.clone(),
            disk,
            owed: Vec::new(),
            disk_mood: Disk::Good,
            now: 0,
            connected: BTreeSet::new(),
            tasks: BTreeMap::new(),
            asked: BTreeMap::new(),
            journals: (0..SITES).map(|_| Journal::default()).collect(),
            refused: BTreeSet::new(),
            counted: BTreeMap::new(),
            offers: 0,
            longest_log: 0,
        };
        this.event(Event::Open).expect("a planned round opens");
        this
    }

    fn at(&self) -> Timestamp {
        Timestamp::from_millis(self.now)
    }

    /// Load, step, commit; what is to be done stays owed. `Ok(true)` when the caller may acknowledge.
    fn event(&mut self, event: Event) -> Result<bool, Refusal> {
        let published = matches!(event, Event::Judged(_));
        let step = step(&self.memory.round, event, self.at())?;
        let mut next = self.memory.clone();
        next.version += 1;
        next.log.extend(step.records.iter().cloned());
        if let (true, AnyRound::Promoted(r)) = (published, &step.next) {
            next.model = r.stage.model;
            next.models += 1;
        }
        next.round = step.next;
        if self.commit(next) {
            self.owed.extend(step.effects);
            Ok(true)
        } else {
            Ok(false)
        }
    }

    /// Compare and swap on the version, as the disk's mood has it.
    fn commit(&mut self, next: Durable) -> bool {
        if next.version != self.disk.version + 1 {
            // Something persisted that we did not hear of: read it again before going on.
            self.restart();
            return false;
        }
        match self.disk_mood {
            Disk::Good => {
                self.disk = next.clone();
                self.memory = next;
                true
            }
            Disk::Fails => false,
            Disk::FailsYetPersists => {
                self.disk = next;
                false
            }
        }
    }

    /// What a start does: believe the disk, and derive what is owed from the stage.
    fn restart(&mut self) {
        self.memory = self.disk.clone();
        self.owed = self.memory.round.owed();
        self.connected.clear();
        self.tasks.clear();
        self.asked.clear();
    }

    /// Does what is owed, until a write fails.
    fn act(&mut self) {
        while let Some(effect) = self.owed.first().cloned() {
            let done = match effect {
                Effect::SendTask(id) => {
                    let n = (0..SITES).find(|n| site(*n) == id).expect("a site");
                    if self.connected.contains(&n) {
                        let round = &self.memory.round;
                        self.tasks.insert(n, (round.id().number, round.spec().base));
                    }
                    true
                }
                Effect::Ask(id) => {
                    let n = (0..SITES).find(|n| site(*n) == id).expect("a site");
                    if let AnyRound::Evaluating(r) = &self.memory.round
                        && self.connected.contains(&n)
                    {
                        self.asked.insert(n, (r.id.number, r.spec.attempt, r.stage.candidate));
                    }
                    true
                }
                Effect::Aggregate => {
                    let mut sum: Vec<u8> = self.memory.round.spec().base.0.to_vec();
                    for update in self.memory.round.updates().values() {
                        sum.extend(update.payload.0);
                    }
                    self.settled(Event::Aggregated(Digest::of(&sum)))
                }
                Effect::Judge(_) => self.settled(Event::Judged(Verdict::of(self.failing()))),
                Effect::Advance => self.advance(),
            };
            if !done {
                return;
            }
            if !self.owed.is_empty() {
                self.owed.remove(0);
            }
        }
    }

    /// What the gates of a try find wanting: what is missing fails.
    fn failing(&self) -> Vec<String> {
        let mut this_try = self.memory.log.iter().rev().take_while(|r| **r != Record::Opened);
        let counted = this_try.any(|record| matches!(record, Record::Answered(..)));
        let wanting = evaluates(self.memory.round.id().number) && !counted;
        wanting.then(|| "no site has sent counts".to_owned()).into_iter().collect()
    }

    /// An event whose time may have passed already: then there is nothing left to do.
    fn settled(&mut self, event: Event) -> bool {
        let first = self.owed.remove(0);
        match self.event(event) {
            Ok(true) | Err(_) => {
                self.owed.insert(0, first);
                true
            }
            Ok(false) => {
                if self.owed.is_empty() {
                    self.owed.push(first);
                } else {
                    self.owed.insert(0, first);
                }
                false
            }
        }
    }

    fn advance(&mut self) -> bool {
        let round = self.memory.round.clone();
        let (number, attempt) = (round.id().number, round.spec().attempt);
        let mut next = self.memory.clone();
        next.version += 1;
        match &round {
            AnyRound::Promoted(_) if number >= ROUNDS => next.over = true,
            AnyRound::Promoted(r) => next.round = planned(number + 1, 0, r.stage.model),
            AnyRound::Failed(_) | AnyRound::Rejected(_) if attempt + 1 < ATTEMPTS => {
                next.round = planned(number, attempt + 1, round.spec().base);
            }
            AnyRound::Failed(_) | AnyRound::Rejected(_) => next.over = true,
            _ => return true,
        }
        if self.memory.over {
            return true;
        }
        if next.over {
            return self.commit(next);
        }
        let opened = step(&next.round, Event::Open, self.at()).expect("a planned round opens");
        next.round = opened.next;
        next.log.extend(opened.records);
        if !self.commit(next) {
            return false;
        }
        for n in self.connected.clone() {
            let _ = self.event(Event::Joined(site(n)));
        }
        true
    }

    pub(crate) fn apply(&mut self, op: &Op) {
        match *op {
            Op::Connect(n) => {
                self.connected.insert(n);
                let _ = self.event(Event::Joined(site(n)));
            }
            Op::Train(n) => {
                if let Some(task) = self.tasks.get(&n).copied() {
                    let name = format!("update of {n} for {} on {}", task.0, task.1);
                    let update = UpdateRef {
                        payload: Digest::of(name.as_bytes()),
                        header: Digest::of(format!("header of {name}").as_bytes()),
                        weight: 10 + u32::from(n),
                    };
                    // A kept update is sent again; nothing is trained twice.
                    self.journals[usize::from(n)].sealed.entry(task).or_insert(update);
                }
            }
            Op::Send { site: n, lose_request, lose_answer } => {
                self.send(n, lose_request, lose_answer);
            }
            Op::SendDifferent(n) => {
                let round = self.memory.round.id().number;
                let payload = Digest::of(format!("different {n} {round} {}", self.now).as_bytes());
                let other = UpdateRef { payload, header: payload, weight: 1 };
                let has = self.memory.round.updates().contains_key(&site(n));
                if has && self.event(Event::Update(site(n), other)).is_err() {
                    self.refused.insert(payload);
                }
            }
            Op::SendUnasked(n) => {
                self.offers += 1;
                let payload = Digest::of(format!("unasked {n} {}", self.offers).as_bytes());
                let update = UpdateRef { payload, header: payload, weight: 1 };
                if self.event(Event::Update(site(n), update)).is_err() {
                    self.refused.insert(payload);
                }
            }
            Op::Decline(n) => {
                let _ = self.event(Event::Declined(site(n), "policy".into()));
            }
            Op::Count(n) => {
                if let Some(asked) = self.asked.get(&n).copied() {
                    let (round, attempt, candidate) = asked;
                    let counts = format!("counts of {n} in {round}.{attempt} about {candidate}");
                    let counts = Digest::of(counts.as_bytes());
                    self.counted.insert(counts, (n, round, attempt));
                    // Kept counts are sent again; nothing is paid for twice.
                    self.journals[usize::from(n)].counts.entry(asked).or_insert(counts);
                }
            }
            Op::Answer { site: n, lose_request, lose_answer } => {
                self.answer(n, lose_request, lose_answer);
            }
            Op::AnswerDifferent(n) => {
                let answered = (&site(n), "answered".to_owned());
                if self.memory.round.standing().contains(&answered) {
                    self.unasked(n);
                }
            }
            Op::AnswerUnasked(n) => self.unasked(n),
            Op::Pass(ms) => {
                self.now += i64::try_from(ms).expect("small");
                if self.memory.round.wakes_at().is_some_and(|at| at <= self.at()) {
                    let _ = self.event(Event::Tick);
                }
            }
            Op::Kill => {
                self.restart();
                if self.memory.round.wakes_at().is_some() {
                    let _ = self.event(Event::Resumed);
                }
            }
            Op::KillSite(n) => {
                self.connected.remove(&n);
                self.tasks.remove(&n);
                self.asked.remove(&n);
            }
            Op::Disk(mood) => self.disk_mood = mood,
        }
        self.act();
    }

    fn send(&mut self, n: u8, lose_request: bool, lose_answer: bool) {
        let Some(task) = self.tasks.get(&n).copied() else { return };
        let Some(update) = self.journals[usize::from(n)].sealed.get(&task).cloned() else { return };
        let round = &self.memory.round;
        if lose_request || (round.id().number, round.spec().base) != task {
            return;
        }
        let acknowledged = match self.event(Event::Update(site(n), update)) {
            Ok(durable) => durable,
            // The very same update is already counted: its receipt goes out again.
            Err(Refusal::AlreadyCounted(_)) => true,
            Err(_) => false,
        };
        if acknowledged && !lose_answer {
            self.journals[usize::from(n)].receipts.insert(task);
        }
    }

    fn answer(&mut self, n: u8, lose_request: bool, lose_answer: bool) {
        let Some(asked) = self.asked.get(&n).copied() else { return };
        let kept = self.journals[usize::from(n)].counts.get(&asked).copied();
        let (Some(counts), round) = (kept, &self.memory.round) else { return };
        let of = (round.id().number, round.spec().attempt);
        if lose_request || of != (asked.0, asked.1) {
            return;
        }
        let taken = match self.event(Event::Answered(site(n), Phase::Evaluation, counts)) {
            Ok(durable) => durable,
            Err(Refusal::AlreadyCounted(_)) => true,
            Err(_) => false,
        };
        if taken && !lose_answer {
            self.journals[usize::from(n)].taken.insert(asked);
        }
    }

    /// Counts for the open try that no journal holds.
    fn unasked(&mut self, n: u8) {
        self.offers += 1;
        let counts = Digest::of(format!("unasked counts {n} {}", self.offers).as_bytes());
        let round = &self.memory.round;
        self.counted.insert(counts, (n, round.id().number, round.spec().attempt));
        if self.event(Event::Answered(site(n), Phase::Evaluation, counts)).is_err() {
            self.refused.insert(counts);
        }
    }

    /// Good weather until the study is over.
    pub(crate) fn settle(&mut self) {
        self.disk_mood = Disk::Good;
        self.restart();
        self.act();
        for _ in 0..40 {
            for n in 0..SITES {
                self.apply(&Op::Connect(n));
            }
            for n in 0..SITES {
                self.apply(&Op::Train(n));
                self.apply(&Op::Send { site: n, lose_request: false, lose_answer: false });
            }
            for n in 0..SITES {
                self.apply(&Op::Count(n));
                self.apply(&Op::Answer { site: n, lose_request: false, lose_answer: false });
            }
            self.apply(&Op::Pass(1_100));
        }
    }
}
