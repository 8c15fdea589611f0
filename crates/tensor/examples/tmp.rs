use tensor::*;
fn main() {
    let t = |n: &str, f: fn(&Reference)| { let s = std::time::Instant::now(); f(&Reference); println!("{n} {:?}", s.elapsed()); };
    t("linear", |d| conformance::linear(d));
    t("rows", |d| conformance::rows(d));
    t("attention", |d| conformance::attention(d));
    t("experts", |d| conformance::experts(d));
    t("logits", |d| conformance::logits(d));
}
