//! The sources of the kernels.

/// What all of them are written in, on a GPU.
const GPU: &str = include_str!("../kernels/gpu.cuh");
/// The same on a processor.
const EMULATED: &str = include_str!("../kernels/emulated.h");
const MATH: &str = include_str!("../kernels/math.cuh");

/// A file of attention's kernels, with what they share.
macro_rules! attention {
    ($file:literal) => {
        concat!(include_str!("../kernels/attention.cuh"), include_str!(concat!("../kernels/", $file, ".cu")))
    };
}

/// A file of kernels that finish reduction trees.
macro_rules! tree {
    ($file:literal) => {
        concat!(include_str!("../kernels/tree.cuh"), include_str!(concat!("../kernels/", $file, ".cu")))
    };
}

/// attention_tiles.cuh for a type of cache and a size of heads: the kernel takes long to compile, and a model needs one.
macro_rules! attention_tiles {
    ($type:literal, $kind:literal, $size:literal, $tiles:literal, $warps:literal, $sixteens:literal, $is_exact:literal) => {
        (
            concat!("attention_tiles_", $type, "_", $size),
            concat!(
                include_str!("../kernels/attention.cuh"),
                include_str!("../kernels/attention_tiles.cuh"),
                "\nTILES(attention_tiles_",
                $type,
                "_",
                $size,
                ", ",
                $kind,
                ", ",
                $tiles,
                ", ",
                $warps,
                ", ",
                $sixteens,
                ", ",
                $is_exact,
                ")\n"
            ),
        )
    };
}

/// attention_split.cuh for a type of cache, for the same reason.
macro_rules! attention_split {
    ($type:literal, $kind:literal) => {
        (
            concat!("attention_split_", $type),
            concat!(
                include_str!("../kernels/attention.cuh"),
                include_str!("../kernels/attention_split.cuh"),
                "\nSPLIT(attention_split_",
                $type,
                ", ",
                $kind,
                ")\n"
            ),
        )
    };
}

/// A file of kernels of several ranks that meet.
macro_rules! ranks {
    ($file:literal) => {
        concat!(
            include_str!("../kernels/tree.cuh"),
            include_str!("../kernels/ranks.cuh"),
            include_str!(concat!("../kernels/", $file, ".cu"))
        )
    };
}

/// linear.cuh, gemm.cuh, gemv.cuh or ordered.cuh for a format of weights: a model needs few of them.
macro_rules! of_format {
    ($file:literal, $macro:literal, $format:literal, $type:literal) => {
        (
            concat!($file, "_", $format),
            concat!(
                include_str!("../kernels/experts.cuh"),
                include_str!("../kernels/linear_formats.cuh"),
                include_str!(concat!("../kernels/", $file, ".cuh")),
                "\n",
                $macro,
                "(",
                $file,
                "_",
                $format,
                ", ",
                $type,
                ")\n"
            ),
        )
    };
}

/// Each file's name and text.
pub const FILES: &[(&str, &str)] = &[
    ("all_reduce", ranks!("all_reduce")),
    ("all_reduce_norm", concat!(include_str!("../kernels/norm.cuh"), ranks!("all_reduce_norm"))),
    ("all_reduce_compressed", ranks!("all_reduce_compressed")),
    ("attention_exact", attention!("attention_exact")),
    ("attention_merge", attention!("attention_merge")),
    attention_split!("bfloat", "BFLOAT"),
    attention_split!("half", "HALF"),
    attention_split!("fp8", "FP8"),
    attention_tiles!("bfloat", "BFLOAT", "64", 4, 4, 2, true),
    attention_tiles!("bfloat", "BFLOAT", "128", 8, 8, 1, true),
    attention_tiles!("bfloat", "BFLOAT", "256", 16, 4, 1, true),
    attention_tiles!("bfloat", "BFLOAT", "to_128", 8, 8, 1, false),
    attention_tiles!("bfloat", "BFLOAT", "to_256", 16, 4, 1, false),
    attention_tiles!("half", "HALF", "64", 4, 4, 2, true),
    attention_tiles!("half", "HALF", "128", 8, 8, 1, true),
    attention_tiles!("half", "HALF", "256", 16, 4, 1, true),
    attention_tiles!("half", "HALF", "to_128", 8, 8, 1, false),
    attention_tiles!("half", "HALF", "to_256", 16, 4, 1, false),
    attention_tiles!("fp8", "FP8", "64", 4, 8, 1, true),
    attention_tiles!("fp8", "FP8", "128", 8, 8, 1, true),
    attention_tiles!("fp8", "FP8", "to_128", 8, 8, 1, false),
    attention_tiles!("fp8", "FP8", "to_256", 16, 4, 1, false),
    ("elements", include_str!("../kernels/elements.cu")),
    ("embed", include_str!("../kernels/embed.cu")),
    ("finish", tree!("finish")),
    of_format!("gemm", "GEMM", "bfloat", "Sixteen<false>"),
    of_format!("gemm", "GEMM", "half", "Sixteen<true>"),
    of_format!("gemm", "GEMM", "fp8", "Eight"),
    of_format!("gemm", "GEMM", "scaled", "Scaled"),
    of_format!("gemm", "GEMM", "int8", "Whole<false>"),
    of_format!("gemm", "GEMM", "int4", "Whole<true>"),
    of_format!("gemv", "GEMV", "bfloat", "Sixteen<false>"),
    of_format!("gemv", "GEMV", "half", "Sixteen<true>"),
    of_format!("gemv", "GEMV", "fp8", "Eight"),
    of_format!("gemv", "GEMV", "scaled", "Scaled"),
    of_format!("gemv", "GEMV", "int8", "Whole<false>"),
    of_format!("gemv", "GEMV", "int4", "Whole<true>"),
    ("limits", include_str!("../kernels/limits.cu")),
    of_format!("linear", "LINEAR", "bfloat", "Sixteen<false>"),
    of_format!("linear", "LINEAR", "half", "Sixteen<true>"),
    of_format!("linear", "LINEAR", "fp8", "Eight"),
    of_format!("linear", "LINEAR", "scaled", "Scaled"),
    of_format!("linear", "LINEAR", "int8", "Whole<false>"),
    of_format!("linear", "LINEAR", "int4", "Whole<true>"),
    (
        "linear_exact",
        concat!(include_str!("../kernels/experts.cuh"), include_str!("../kernels/linear_exact.cu")),
    ),
    ("linear_inputs", include_str!("../kernels/linear_inputs.cu")),
    ("logits", include_str!("../kernels/logits.cu")),
    ("logits_edit", include_str!("../kernels/logits_edit.cu")),
    ("logits_top", include_str!("../kernels/logits_top.cu")),
    ("moe", include_str!("../kernels/moe.cu")),
    ("moves", ranks!("moves")),
    ("kv", concat!(include_str!("../kernels/heads.cuh"), attention!("kv"))),
    (
        "norm",
        concat!(
            include_str!("../kernels/heads.cuh"),
            include_str!("../kernels/norm.cuh"),
            include_str!("../kernels/norm.cu")
        ),
    ),
    ("rope", concat!(include_str!("../kernels/heads.cuh"), include_str!("../kernels/rope.cu"))),
    of_format!("ordered", "ORDERED", "int8", "Whole<false>"),
    of_format!("ordered", "ORDERED", "int4", "Whole<true>"),
    ("pack", include_str!("../kernels/pack.cu")),
    ("unpack", include_str!("../kernels/unpack.cu")),
];

/// Whether a file is for one format of weights.
pub(crate) fn is_of_format(file: &str) -> bool {
    let ends = ["_bfloat", "_half", "_fp8", "_scaled", "_int8", "_int4"];
    ends.iter().any(|end| file.ends_with(end))
}

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
