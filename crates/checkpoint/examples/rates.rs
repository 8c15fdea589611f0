//! How fast rows are read, per core: `cargo run --release -p checkpoint --example rates`.

use std::time::Instant;

use checkpoint::{Checkpoint, Fill, WeightSource};
use tensor::{DType, MatrixSource};

const ROWS: usize = 64;
const COLS: usize = 16384;
const ROUNDS: usize = 16;

fn main() {
    for (dtype, name) in [(DType::F32, "F32"), (DType::F16, "F16"), (DType::BF16, "BF16")] {
        let source = WeightSource::Random { seed: 1, dtype };
        let matrix = source.matrix("w", [ROWS, COLS], Fill::LINEAR).expect("seeded weights cannot fail");
        report(&format!("random {dtype}"), &matrix);

        let length = ROWS * COLS * dtype.bytes();
        let header =
            format!(r#"{{"w":{{"dtype":"{name}","shape":[{ROWS},{COLS}],"data_offsets":[0,{length}]}}}}"#);
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.resize(file.len() + length, 1);
        let checkpoint = Checkpoint::from_bytes("rates", file.leak()).expect("the header is right");
        report(&format!("stored {dtype}"), &checkpoint.matrix("w", [ROWS, COLS]).expect("w is there"));
    }
}

fn report(what: &str, matrix: &dyn MatrixSource) {
    let mut out = vec![0.0; COLS];
    let start = Instant::now();
    for row in (0..ROWS).cycle().take(ROWS * ROUNDS) {
        matrix.read(row, 0..COLS, &mut out);
        std::hint::black_box(&out);
    }
    let rate = (ROWS * ROUNDS * COLS) as f64 / start.elapsed().as_secs_f64() / 1e6;
    println!("{what:16} {rate:8.0} M elements/s");
}
