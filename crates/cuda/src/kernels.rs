//! The sources of the kernels.

/// What all of them are written in, on a GPU.
const GPU: &str = include_str!("../kernels/gpu.cuh");
/// The same on a processor.
const EMULATED: &str = include_str!("../kernels/emulated.h");
const MATH: &str = include_str!("../kernels/math.cuh");

/// Each file's name and text.
pub const FILES: &[(&str, &str)] = &[
    ("elements", include_str!("../kernels/elements.cu")),
    ("embed", include_str!("../kernels/embed.cu")),
    ("gemm", include_str!("../kernels/gemm.cu")),
    ("linear", include_str!("../kernels/linear.cu")),
    ("linear_exact", include_str!("../kernels/linear_exact.cu")),
    ("linear_inputs", include_str!("../kernels/linear_inputs.cu")),
    ("logits", include_str!("../kernels/logits.cu")),
    ("logits_edit", include_str!("../kernels/logits_edit.cu")),
    ("logits_top", include_str!("../kernels/logits_top.cu")),
    ("moe", include_str!("../kernels/moe.cu")),
    ("norm", include_str!("../kernels/norm.cu")),
    ("rope", include_str!("../kernels/rope.cu")),
];

/// What is compiled of a file for a GPU; nothing if there is no such file.
pub fn for_gpu(file: &str) -> Option<String> {
    let (name, text) = FILES.iter().find(|(name, _)| *name == file)?;
    Some(format!("{GPU}\n{MATH}\n#line 1 \"{name}.cu\"\n{text}"))
}

/// All files in C++ for a processor.
pub fn emulated() -> String {
    let files = FILES.iter().map(|(name, text)| format!("#line 1 \"{name}.cu\"\n{text}\n"));
    format!("{EMULATED}\n{MATH}\n{}", files.collect::<String>())
}
