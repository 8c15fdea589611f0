//! The real binary, from end to end: what a user types, and what comes back.
//!
//! Every child has a time limit, so nothing here can hang.

mod axes_flags;
mod bad_arguments;
mod bad_config;
mod bad_prompts;
mod bad_text;
mod bad_weights;
mod bench;
mod bench_gpus;
mod bench_serve;
mod checkpoints;
mod child;
mod cuda;
mod cuda_told;
mod deploy;
mod deploy_fields;
mod deploy_shell;
mod environment;
mod fp8;
#[path = "../../crates/job/tests/common/hosts.rs"]
mod hosts;
mod hub;
mod job_child;
mod jobs_common;
mod jobs_crowded;
mod jobs_disk;
mod jobs_faults;
mod jobs_faults_launcher;
mod jobs_hosts;
mod jobs_launchers;
mod jobs_net;
mod jobs_refused;
mod jobs_same_bytes;
mod json_shapes;
mod launch;
mod launch_faults;
mod launch_usage;
mod packed;
mod perplexity;
#[path = "../../crates/job/tests/common/ports.rs"]
mod ports;
mod quantize;
mod quantize_folder;
mod same_answers;
mod same_bits;
mod sampling;
mod scripted_server;
mod serve_flags;
mod serve_life;
mod serve_tokens;
mod served;
#[path = "../../crates/cuda/tests/fake/mod.rs"]
mod stand_ins;
mod stats;
mod terminal;
mod text;
mod tp_plan;
mod tp_plan_file;
mod trace;
