//! Several measurements of one thing: the middle one is quoted, the spread says how far to trust it.

/// Measurements of one thing, in one unit.
#[derive(Clone, Debug, Default)]
pub struct Sample(Vec<f64>);

impl Sample {
    /// Adds a measurement.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
        self.0.sort_by(f64::total_cmp);
    }

    /// The middle one; the mean of the middle two of an even number.
    pub fn median(&self) -> f64 {
        let count = self.0.len();
        match count {
            0 => f64::NAN,
            _ if count % 2 == 1 => self.0[count / 2],
            _ => f64::midpoint(self.0[count / 2 - 1], self.0[count / 2]),
        }
    }

    /// The least measurement that is not exceeded by such a share of them: 0.99 for all but one in a hundred.
    pub fn percentile(&self, share: f64) -> f64 {
        let place = (share * self.0.len() as f64).ceil() as usize;
        self.0.get(place.saturating_sub(1)).copied().unwrap_or(f64::NAN)
    }

    /// From the least to the greatest, as a share of the median.
    pub fn spread(&self) -> f64 {
        match (self.0.first(), self.0.last()) {
            (Some(least), Some(greatest)) if self.median() > 0.0 => {
                (greatest - least) / self.median()
            }
            _ => 0.0,
        }
    }
}

impl FromIterator<f64> for Sample {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        let mut sample = Self::default();
        values.into_iter().for_each(|value| sample.push(value));
        sample
    }
}

#[cfg(test)]
mod tests {
    use super::Sample;

    #[test]
    fn the_median_is_the_middle_whatever_the_order() {
        let sample: Sample = [9.0, 1.0, 5.0].into_iter().collect();
        assert_eq!((sample.median(), sample.spread()), (5.0, 8.0 / 5.0));
        let sample: Sample = [4.0, 2.0].into_iter().collect();
        assert_eq!(sample.median(), 3.0);
    }

    #[test]
    fn a_percentile_leaves_the_rest_above_it() {
        let sample: Sample = (1..=200).rev().map(f64::from).collect();
        assert_eq!((sample.percentile(0.99), sample.percentile(1.0)), (198.0, 200.0));
    }
}
