//! Pretended machines, and how long their steps take.

/// What a step takes: reading the weights, and work for each row, one after the other or at the same time.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    pub weights_s: f64,
    pub row_s: f64,
    pub overlaps: bool,
}

/// From a GPU to a large model on an old processor.
pub const MACHINES: [Machine; 6] = [
    Machine { weights_s: 5e-3, row_s: 2e-5, overlaps: true },
    Machine { weights_s: 5e-3, row_s: 2e-5, overlaps: false },
    Machine { weights_s: 50e-3, row_s: 5e-3, overlaps: true },
    Machine { weights_s: 50e-3, row_s: 5e-3, overlaps: false },
    Machine { weights_s: 2.0, row_s: 0.3, overlaps: true },
    Machine { weights_s: 2.0, row_s: 0.3, overlaps: false },
];

impl Machine {
    pub fn step_s(self, rows: usize) -> f64 {
        let rows_s = rows as f64 * self.row_s;
        if self.overlaps { self.weights_s.max(rows_s) } else { self.weights_s + rows_s }
    }
}
