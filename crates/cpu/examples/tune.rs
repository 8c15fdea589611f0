use cpu::limits::*;
use cpu::{CpuConfig, CpuDevice};
use tensor::{DType, Device, MatrixSource, Program};
fn cpu_s() -> f64 { std::fs::read_to_string("/proc/thread-self/schedstat").unwrap().split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9 }
struct Numbers(usize, usize);
impl MatrixSource for Numbers {
    fn rows(&self) -> usize { self.0 }
    fn cols(&self) -> usize { self.1 }
    fn read(&self, row: usize, cols: std::ops::Range<usize>, out: &mut [f32]) {
        for (col, out) in cols.zip(out) { *out = ((row * 31 + col * 17) % 101) as f32 / 50.0 - 1.0; }
    }
}
fn tree(k: usize, leaf: usize) -> Program {
    let items = k / leaf;
    Program { inputs: (0..items).map(|i| i * leaf..(i + 1) * leaf).collect(), merges: (1..=items as u32).map(u32::trailing_zeros).collect(), nodes: vec![0] }
}
fn best(n: usize, mut f: impl FnMut()) -> f64 {
    let mut reps = 1;
    loop { let t = std::time::Instant::now(); for _ in 0..reps { f() } if t.elapsed().as_secs_f64() > 0.1 { break } reps *= 2; }
    (0..n.min(4)).map(|_| { let t = cpu_s(); for _ in 0..reps { f() } cpu_s() - t }).fold(f64::MAX, f64::min) / reps as f64
}
fn main() {
    let fma = fma_rate(&LimitsConfig { repeats: 15, ..LimitsConfig::new(1) });
    let b = best(5, || { fma_rate(&LimitsConfig { repeats: 1, ..LimitsConfig::new(1) }); });
    println!("fma median {fma:.1} {b}");
    let args: Vec<usize> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let (n, k) = (args.first().copied().unwrap_or(2048), args.get(1).copied().unwrap_or(8192));
    let device = CpuDevice::new(CpuConfig { threads: 1, ..CpuConfig::default() });
    if args.len() == 3 {
    use tensor::*;
    // attention
    for (kvh, g, hd) in [(8usize, 4usize, 128usize), (8, 1, 128), (8, 4, 64)] {
        let spec = AttentionSpec { num_heads: kvh * g, num_kv_heads: kvh, group: g, first_in_group: 0, head_dim: hd, scale: 0.1, softcap: None, window: None };
        let blocks = 600 ;
        let mut kv = device.alloc_kv(KvSpec { blocks, num_kv_heads: kvh, head_dim: hd, dtype: DType::BF16 });
        let mut step = |rows: usize, start: usize, n: usize| {
            let m = StepMeta { tokens: vec![0; rows], sequences: vec![SequenceSpan { rows: 0..rows, start, block_table: (0..blocks as u32).collect() }], logit_rows: vec![] };
            let st = device.begin(&m);
            let x: Vec<f32> = (0..rows * spec.qkv_cols()).map(|i| ((i * 37) % 101) as f32 / 500.0 - 0.1).collect();
            let x = device.upload(&x, rows, spec.qkv_cols());
            let store = best(3, || device.store_kv(&mut kv, &x, &st, &spec));
            let s = best(n, || { std::hint::black_box(device.attention(&x, &kv, &st, &spec)); });
            let pairs: usize = (0..rows).map(|r| start + r + 1).sum();
            println!("kvh {kvh} g {g} hd {hd} rows {rows} start {start}: {:.1} us, {:.1} GF/s, {:.1} GB/s; store {:.1} us", s * 1e6, (pairs * kvh * g * hd * 4) as f64 / s / 1e9, ((start + rows) * kvh * hd * 4) as f64 / s / 1e9, store * 1e6);
        };
        step(512, 0, 3);
        for i in 1..16 { let _ = i; }
        step(512, 512, 3);
        step(512, 4096, 1);
        step(1, 511, 9);
        step(1, 8191, 9);
    }
    for rows in [1usize, 512] {
        let x = device.upload(&vec![0.3; rows * 4096], rows, 4096);
        let w = device.upload(&vec![0.3; 4096], 1, 4096);
        let s = best(9, || for _ in 0..10 { std::hint::black_box(device.norm(&x, &w, None, NormSpec { kind: NormKind::Rms { weight_offset: 0.0 }, eps: 1e-6 })); });
        let x2 = device.upload(&vec![0.3; rows * 28672], rows, 28672);
        let g = best(9, || for _ in 0..10 { std::hint::black_box(device.gated(&x2, Activation::Silu)); });
        let mut y = device.upload(&vec![0.3; rows * 4096], rows, 4096);
        let a = best(9, || for _ in 0..10 { device.add(&mut y, &x); });
        println!("rows {rows}: norm {:.2} us gated {:.2} us add {:.2} us", s * 1e5, g * 1e5, a * 1e5);
    }
    let l = device.upload(&(0..128000).map(|i| ((i * 7919) % 128011) as f32 * 1e-4).collect::<Vec<_>>(), 1, 128000);
    let t = best(9, || { std::hint::black_box(device.top_k(&l, 0, 40).unwrap()); });
    let m = best(9, || { std::hint::black_box(device.row_max(&l).unwrap()); });
    let tr = ReductionTree::over_ids(8000).program(0..8000);
    let e = best(9, || { std::hint::black_box(device.exp_sums(&l, &[12.8], &tr).unwrap()); });
    println!("128k: top_k {:.1} us max {:.1} us exp_sums {:.1} us", t * 1e6, m * 1e6, e * 1e6);
    struct Bf(Vec<u16>, usize);
    impl MatrixSource for Bf { fn rows(&self) -> usize { self.0.len() / self.1 } fn cols(&self) -> usize { self.1 }
      fn read(&self, row: usize, cols: std::ops::Range<usize>, out: &mut [f32]) { for (o, b) in out.iter_mut().zip(&self.0[row * self.1 + cols.start..row * self.1 + cols.end]) { *o = f32::from_bits((*b as u32) << 16); } } }
    let src = Bf(vec![0x3f80; 8192 * 2048], 8192);
    for d in [DType::BF16, DType::F16, DType::F32] { let p = best(3, || { std::hint::black_box(device.pack(&src, d)); }); println!("pack {d}: {:.2} Gelem/s", 8192.0 * 2048.0 / p / 1e9); }
    return;
    }
    let ws: Vec<_> = (0..(800 << 20) / (n * k * 2)).map(|_| device.pack(&Numbers(n, k), DType::BF16)).collect();
    for rows in [1, 2, 3, 4, 5, 6, 8, 1, 128] {
        let x: Vec<f32> = (0..rows * k).map(|i| ((i * 37) % 101) as f32 / 50.0 - 1.0).collect();
        let x = device.upload(&x, rows, k);
        let layers = if rows >= 64 { 1 } else { ws.len() };
        print!("{rows} rows:");
        for leaf in [k, 512, 128, 64] {
            let p = tree(k, leaf);
            let s = best(if rows > 8 { 4 } else { 4 }, || for w in &ws[..layers] { std::hint::black_box(device.linear_tree(&x, w, &p)); });
            let fl = (2 * rows * n * k * layers) as f64 / s / 1e9;
            print!("  leaf {leaf}: {fl:.1} GF/s {:.1} GB/s", (n * k * 2 * layers) as f64 / s / 1e9);
        }
        println!();
    }
}
