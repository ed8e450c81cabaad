//! How far a long piece of work is, shown in the form that fits the reader: one bar on a terminal, a line now and then
//! where there is none, objects for programs. One overall figure, never one per part.
//!
//! [`Pace`] decides which of the many reports are worth a line, and is pure; [`Meter`] is told of all of them.

mod speed;

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use collective_model::{ByteCount, Monitor, Progress};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use self::speed::Speed;
use crate::output::Output;
use crate::text;

/// Objects of progress that a program is sent, at most one in this time: more would only fill its pipe.
const OBJECT_EVERY: Duration = Duration::from_millis(250);

/// A plain line at least this often while bytes move and no tenth is passed.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// A bar redraws and turns its wheel this often.
const BAR_EVERY: Duration = Duration::from_millis(120);

/// Steps of a bar: a tenth of a percent is as fine as a terminal shows.
const BAR_STEPS: u64 = 1000;

/// One report of how far something is.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Step {
    /// What the work does just now; empty if it has only one stage.
    pub stage: String,
    /// How far it is in all, where that is known.
    pub percent: Option<u8>,
    /// Bytes worked through.
    pub done_bytes: u64,
    /// Bytes in all, once known.
    pub total_bytes: Option<u64>,
    /// Bytes that crossed the network or were stored.
    pub moved_bytes: u64,
    /// Bytes worked through in a second, once that is known.
    pub bytes_per_second: Option<u64>,
}

impl Step {
    /// Makes the step of a library's report.
    pub fn new(stage: &str, progress: Progress) -> Self {
        Self {
            stage: stage.to_owned(),
            percent: None,
            done_bytes: progress.done_bytes,
            total_bytes: progress.total_bytes,
            moved_bytes: progress.moved_bytes,
            bytes_per_second: None,
        }
    }

    /// How long what is left takes at the speed of now; none while nobody knows, and at the end.
    fn left(&self) -> Option<Duration> {
        let left_bytes = self.total_bytes?.checked_sub(self.done_bytes).filter(|left| *left > 0)?;
        let seconds = left_bytes.checked_div(self.bytes_per_second?)?;
        Some(Duration::from_secs(seconds.max(1)))
    }

    /// The share that is done, in steps of a bar; none while nobody knows.
    fn position(&self) -> Option<u64> {
        let of_bytes = || {
            let total = self.total_bytes.filter(|total| *total > 0)?;
            Some((u128::from(self.done_bytes) * u128::from(BAR_STEPS) / u128::from(total)) as u64)
        };
        let known = self.percent.map(|percent| u64::from(percent) * BAR_STEPS / 100);
        known.or_else(of_bytes).map(|position| position.min(BAR_STEPS))
    }

    /// Writes the figures: `publishing: 12.0 MB of 1.05 GB, 3.00 MB moved, 2.00 MB/s, 8 min 39 s left`.
    fn text(&self) -> String {
        let mut figures = Vec::new();
        match self.total_bytes {
            Some(total) if total > 0 => {
                figures.push(format!("{} of {}", ByteCount(self.done_bytes), ByteCount(total)));
            }
            _ if self.done_bytes > 0 => figures.push(ByteCount(self.done_bytes).to_string()),
            _ => {}
        }
        if self.moved_bytes > 0 {
            figures.push(format!("{} moved", ByteCount(self.moved_bytes)));
        }
        if let Some(speed) = self.bytes_per_second.filter(|_| !figures.is_empty()) {
            figures.push(format!("{}/s", ByteCount(speed)));
        }
        if let Some(left) = self.left() {
            figures.push(format!("{} left", text::duration(left)));
        }
        match (self.stage.as_str(), figures.join(", ")) {
            (stage, figures) if figures.is_empty() => stage.to_owned(),
            ("", figures) => figures,
            (stage, figures) => format!("{stage}: {figures}"),
        }
    }
}

/// Decides which reports are worth a line.
#[derive(Debug, Default)]
struct Pace {
    last: Option<(Instant, String, Option<u64>)>,
}

impl Pace {
    /// Tells whether a step should be shown: a new stage, a new tenth (`tenths`), or `every` has passed.
    fn is_due(&mut self, step: &Step, now: Instant, every: Duration, tenths: bool) -> bool {
        let tenth = step.position().map(|position| position * 10 / BAR_STEPS);
        let due = match &self.last {
            None => true,
            Some((shown, stage, last)) => {
                *stage != step.stage
                    || (tenths && *last != tenth)
                    || now.saturating_duration_since(*shown) >= every
            }
        };
        if due {
            self.last = Some((now, step.stage.clone(), tenth));
        }
        due
    }
}

/// Shows how far one piece of work is.
#[derive(Debug)]
pub struct Meter {
    label: String,
    stage: Mutex<String>,
    speed: Mutex<Speed>,
    shape: Shape,
}

#[derive(Debug)]
enum Shape {
    Bar(ProgressBar),
    Lines(Output, Mutex<Pace>),
    Objects(Output, Mutex<Pace>),
}

/// What a program reads of a step.
#[derive(Serialize)]
struct Report<'a> {
    what: &'a str,
    #[serde(flatten)]
    step: &'a Step,
}

impl Meter {
    /// Makes the meter of the work that `label` names; `terminal` tells whether stderr is one.
    pub fn new(label: &str, output: &Output, terminal: bool) -> Self {
        let shape = if output.is_json() {
            Shape::Objects(output.clone(), Mutex::default())
        } else if terminal {
            Shape::Bar(bar(label))
        } else {
            Shape::Lines(output.clone(), Mutex::default())
        };
        Self { label: label.to_owned(), stage: Mutex::default(), speed: Mutex::default(), shape }
    }

    /// Names the stage that the next reports of a library belong to.
    pub fn stage(&self, stage: &str) {
        stage.clone_into(&mut self.stage.lock().unwrap_or_else(PoisonError::into_inner));
        self.step(&Step::new(stage, Progress::default()));
    }

    /// Takes a report.
    pub fn step(&self, step: &Step) {
        let now = Instant::now();
        let mut speed = self.speed.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes_per_second = speed.measure(&step.stage, step.done_bytes, now);
        drop(speed);
        let step = &Step { bytes_per_second, ..step.clone() };
        match &self.shape {
            Shape::Bar(bar) => {
                bar.set_style(style(step.position().is_some()));
                bar.set_message(text::plain(&step.text()));
                bar.set_position(step.position().unwrap_or_default());
            }
            Shape::Lines(output, pace) => {
                let mut pace = pace.lock().unwrap_or_else(PoisonError::into_inner);
                let text = step.text();
                if !text.is_empty() && pace.is_due(step, now, LINE_EVERY, true) {
                    output.note(&format!("{}: {}", self.label, text::plain(&text)));
                }
            }
            Shape::Objects(output, pace) => {
                let mut pace = pace.lock().unwrap_or_else(PoisonError::into_inner);
                if pace.is_due(step, now, OBJECT_EVERY, false) {
                    output.object("progress", &Report { what: &self.label, step });
                }
            }
        }
    }

    /// Tells people something beside the bar.
    pub fn note(&self, text: &str) {
        match &self.shape {
            Shape::Bar(bar) => bar.println(text),
            Shape::Lines(output, _) | Shape::Objects(output, _) => output.note(text),
        }
    }
}

impl Monitor for Meter {
    fn progress(&self, progress: Progress) {
        let stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.step(&Step::new(&stage, progress));
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if let Shape::Bar(bar) = &self.shape {
            bar.finish_and_clear();
        }
    }
}

/// How a step is drawn: a full bar of the stage before must not stand beside one of which nobody knows how far it is.
fn style(share_is_known: bool) -> ProgressStyle {
    let template = match share_is_known {
        true => "{spinner} {prefix} [{bar:24}] {percent:>3}% {wide_msg}",
        false => "{spinner} {prefix} {wide_msg}",
    };
    ProgressStyle::with_template(template)
        .expect("both templates are constants and are drawn in a test of this module")
        .progress_chars("=> ")
}

fn bar(label: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(BAR_STEPS), ProgressDrawTarget::stderr())
        .with_style(style(false))
        .with_prefix(label.to_owned());
    bar.enable_steady_tick(BAR_EVERY);
    bar
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{LINE_EVERY, Pace, Step, bar, style};

    fn step(stage: &str, done_bytes: u64, total_bytes: Option<u64>) -> Step {
        Step { stage: stage.to_owned(), done_bytes, total_bytes, ..Step::default() }
    }

    #[test]
    fn a_step_says_its_stage_and_its_bytes() {
        let mut shown = step("publishing", 12_000_000, Some(1_050_000_000));
        shown.moved_bytes = 3_000_000;
        assert_eq!(shown.text(), "publishing: 12.0 MB of 1.05 GB, 3.00 MB moved");
        shown.bytes_per_second = Some(2_000_000);
        let figures = "12.0 MB of 1.05 GB, 3.00 MB moved, 2.00 MB/s, 8 min 39 s left";
        assert_eq!(shown.text(), format!("publishing: {figures}"));
        shown.bytes_per_second = Some(0);
        assert!(shown.text().ends_with("moved, 0 B/s"), "nobody knows how long");
        assert_eq!(step("", 5, None).text(), "5 B");
        assert_eq!(step("taking the lock", 0, None).text(), "taking the lock");
        assert_eq!(step("", 0, None).text(), "");
    }

    #[test]
    fn the_overall_percent_goes_before_the_bytes_of_a_stage() {
        let mut shown = step("", 1, Some(2));
        assert_eq!(shown.position(), Some(500));
        shown.percent = Some(90);
        assert_eq!(shown.position(), Some(900));
        assert_eq!(step("", 9, Some(3)).position(), Some(1000), "never past the end");
        assert_eq!(step("", 9, Some(0)).position(), None);
    }

    #[test]
    fn a_line_is_due_at_a_new_stage_a_new_tenth_or_after_a_while() {
        let (mut pace, begin) = (Pace::default(), Instant::now());
        let mut due =
            |step: Step, after: Duration| pace.is_due(&step, begin + after, LINE_EVERY, true);
        assert!(due(step("a", 0, Some(100)), Duration::ZERO));
        assert!(!due(step("a", 9, Some(100)), Duration::from_secs(1)));
        assert!(due(step("a", 10, Some(100)), Duration::from_secs(2)));
        assert!(due(step("b", 10, Some(100)), Duration::from_secs(3)));
        assert!(!due(step("b", 11, Some(100)), Duration::from_secs(12)));
        assert!(due(step("b", 11, Some(100)), Duration::from_secs(13)));
    }

    #[test]
    fn the_bar_can_be_drawn() {
        let bar = bar("start debian");
        for share_is_known in [true, false] {
            bar.set_style(style(share_is_known));
        }
        assert_eq!(bar.length(), Some(1000));
    }
}
