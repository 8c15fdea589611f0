//! What README.md, `docs/` and `deploy/` tell people to run, as far as it can be checked without a cluster.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::child::anysplit;
use crate::deploy_fields::{LeaderWorkerSet, NetworkPolicy, RestartPolicy};
use crate::deploy_shell::{Stage, are_accepted, blocks, value};

const PAGES: [&str; 4] = ["README.md", "deploy/README.md", "docs/clouds.md", "docs/mpi.md"];
const BASH: &str = "/bin/bash";

fn path(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(file)
}

fn read(file: &str) -> String {
    fs::read_to_string(path(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

#[test]
fn every_command_of_the_pages_is_one_that_the_binary_takes() {
    // What an earlier block, or Kubernetes, has set.
    let variables =
        [("LWS_GROUP_SIZE", "4"), ("LWS_WORKER_INDEX", "3"), ("LWS_LEADER_ADDRESS", "anysplit-0.anysplit")];
    for page in PAGES {
        let calls = Stage::new().calls(BASH, &blocks(&read(page)), &variables);
        are_accepted(&calls);
    }
}

#[test]
fn the_rehearsal_runs_as_it_stands() {
    let page = read("docs/clouds.md");
    let (_, section) = page.split_once("\n## Rehearsal").unwrap();
    let script = blocks(section.split("\n## ").next().unwrap());
    // A port that is free here.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let script = script.replace("29501", &port.to_string());
    assert!(script.contains(&port.to_string()) && script.contains("cmp "), "{script}");
    let (dir, programs) =
        (tempfile::tempdir().unwrap(), Path::new(env!("CARGO_BIN_EXE_anysplit")).parent().unwrap());
    let mut paths = vec![programs.to_owned()];
    paths.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let mut command = assert_cmd::Command::new(BASH);
    command.args(["-euc", &script]).current_dir(dir.path()).env("PATH", std::env::join_paths(paths).unwrap());
    let output = command.timeout(Duration::from_secs(120)).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(fs::read_to_string(dir.path().join("hosts.json")).unwrap().contains("logprobs"));
}

#[test]
fn processes_of_a_job_are_as_many_as_its_parallel_sizes_multiply_to() {
    let calls = Stage::new().calls(BASH, &blocks(&read("docs/clouds.md")), &[]);
    for call in calls.iter().filter(|call| call[0] == "launch") {
        let (launch, command) = call.split_at(call.iter().position(|word| word == "--").unwrap());
        let of = |words: &[String], flag| -> usize {
            if words.iter().any(|word| word == flag) { value(words, flag).parse().unwrap() } else { 1 }
        };
        let product: usize = ["--tp", "--pp", "--dp"].iter().map(|flag| of(command, flag)).product();
        let processes = of(launch, "--nproc-per-node") * of(launch, "--nnodes");
        assert!(product == processes || command[2] == "bench", "{processes} processes: {call:?}");
    }
}

#[test]
fn every_variable_that_is_named_is_a_flags_twin() {
    let pages = ["launch", "generate", "score", "serve"].map(|name| anysplit(name).arg("--help").prints());
    let help = pages.concat().split_whitespace().collect::<Vec<_>>().join(" ");
    let files = ["kubernetes/leaderworkerset.yaml", "slurm/anysplit.sbatch", "systemd/anysplit.service"];
    let files = files.map(|file| format!("deploy/{file}"));
    for file in files.iter().map(String::as_str).chain(PAGES) {
        for (at, _) in read(file).match_indices("ANYSPLIT_") {
            let text = read(file);
            let name: String =
                text[at..].chars().take_while(|c| c.is_ascii_uppercase() || *c == '_').collect();
            // Values of secrets are not shown.
            let is_twin = ["=]", "]"].iter().any(|end| help.contains(&format!("[env: {name}{end}")));
            assert!(is_twin, "{file}: no flag has the twin {name}");
        }
    }
}

#[test]
fn the_leader_worker_set_is_one_and_its_pods_are_one_job() {
    let text = read("deploy/kubernetes/leaderworkerset.yaml");
    let (set, policy) = text.split_once("\n---\n").expect("two documents");
    let set: LeaderWorkerSet = serde_saphyr::from_str(set).unwrap();
    assert_eq!((&*set.api_version, &*set.kind), ("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet"));
    let template = &set.spec.leader_worker_template;
    assert_eq!(template.restart_policy, RestartPolicy::RecreateGroupOnPodRestart);
    let pod = &template.worker_template.spec;
    let [container] = &pod.containers[..] else { panic!("one container") };

    // The controller's variables, simulated.
    let size = template.size.to_string();
    let [shell, flags] = &container.command[..] else { panic!("a shell: {:?}", container.command) };
    assert_eq!((&**shell, &**flags), ("sh", "-ec"));
    let variables = [
        ("LWS_GROUP_SIZE", &*size),
        ("LWS_WORKER_INDEX", "1"),
        ("LWS_LEADER_ADDRESS", "anysplit-0.anysplit"),
    ];
    let calls = Stage::new().calls("/bin/sh", &container.args[0], &variables);
    let [call] = &calls[..] else { panic!("one command: {calls:?}") };
    are_accepted(&calls);
    assert_eq!(value(call, "--tp"), size);

    // The secret is where the variable says, and so that `launch` takes it.
    let secret = container.env.iter().find(|variable| variable.name == "ANYSPLIT_GROUP_SECRET_FILE").unwrap();
    let (dir, file) = secret.value.rsplit_once('/').unwrap();
    assert!(read("deploy/README.md").contains(&format!("--from-file={file}=")));
    let mount = container.volume_mounts.iter().find(|mount| mount.mount_path == dir).unwrap();
    let volume = pod.volumes.iter().find(|volume| volume.name == mount.name).unwrap();
    assert!(mount.read_only && volume.secret.as_ref().unwrap().default_mode == 0o400);
    let mounted = |name: &String| pod.volumes.iter().any(|volume| volume.name == *name);
    assert!(container.volume_mounts.iter().all(|mount| mounted(&mount.name)));
    assert_eq!(container.ports[0].container_port, 29500);

    let policy: NetworkPolicy = serde_saphyr::from_str(policy).unwrap();
    assert_eq!((&*policy.api_version, &*policy.kind), ("networking.k8s.io/v1", "NetworkPolicy"));
    let own = &policy.spec.pod_selector;
    assert_eq!(own.match_labels["leaderworkerset.sigs.k8s.io/name"], set.metadata.name.unwrap());
    assert_eq!(
        (&policy.spec.ingress[0].from[0].pod_selector, &*policy.spec.policy_types),
        (own, &["Ingress".into()][..])
    );
}

#[test]
fn the_slurm_script_keeps_its_secret_to_itself_and_takes_it_away() {
    let file = "deploy/slurm/anysplit.sbatch";
    assert!(Command::new(BASH).arg("-n").arg(path(file)).status().unwrap().success());
    let script = read(file);
    let stage = Stage::new();
    let dir = stage.dir().to_str().unwrap().to_owned();
    let variables = [("SLURM_SUBMIT_DIR", &*dir), ("SLURM_JOB_ID", "4711")];
    let calls = stage.calls(BASH, &script, &variables);
    assert_eq!(calls.len(), 1);
    are_accepted(&calls);
    // srun's stand-in wrote down what it saw.
    assert_eq!(fs::read_to_string(stage.dir().join("mode")).unwrap(), "600\n");
    let left =
        fs::read_dir(stage.dir()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(left.into_iter().all(|name| !name.contains("secret")));

    let option = |name: &str| -> usize {
        let line = script.lines().find_map(|line| line.strip_prefix(&format!("#SBATCH --{name}=")));
        line.unwrap_or_else(|| panic!("{name}")).parse().unwrap()
    };
    let default = |name: &str| -> usize {
        let (_, rest) = script.split_once(&format!("{{ANYSPLIT_{name}_PARALLEL_SIZE:-")).unwrap();
        rest.split_once('}').unwrap().0.parse().unwrap()
    };
    assert_eq!(option("nodes") * option("ntasks-per-node"), default("TENSOR") * default("PIPELINE"));
}

#[test]
fn the_unit_has_the_keys_of_a_service() {
    let file = "deploy/systemd/anysplit.service";
    let unit = read(file);
    let section = |name: &str| {
        let (_, rest) = unit.split_once(&format!("[{name}]\n")).unwrap_or_else(|| panic!("[{name}]"));
        rest.split("\n[").next().unwrap().lines().filter(|line| !line.starts_with('#') && !line.is_empty())
    };
    let value = |name: &str, key: &str| {
        let found = section(name).find_map(|line| line.strip_prefix(&format!("{key}=")));
        found.unwrap_or_else(|| panic!("{key} in [{name}]")).to_owned()
    };
    let command = value("Service", "ExecStart");
    let command = command.strip_prefix("/usr/local/bin/").expect("an absolute path");
    are_accepted(&Stage::new().calls(BASH, command, &[]));
    // The launcher ends its ranks, so only it is asked to; 2 is wrong use, 143 its answer to SIGTERM.
    for (key, expected) in [
        ("KillMode", "mixed"),
        ("RestartPreventExitStatus", "2"),
        ("SuccessExitStatus", "143"),
        ("Restart", "on-failure"),
    ] {
        assert_eq!(value("Service", key), expected);
    }
    assert!(value("Unit", "After").contains("network-online.target"));
    assert_eq!(value("Install", "WantedBy"), "multi-user.target");

    // systemd's own opinion, where there is systemd. It wants the program to exist.
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("anysplit.service");
    fs::write(&copy, unit.replace("/usr/local/bin/anysplit", env!("CARGO_BIN_EXE_anysplit"))).unwrap();
    match Command::new("systemd-analyze").arg("verify").arg(&copy).output() {
        Ok(output) => assert!(output.status.success() && output.stderr.is_empty(), "{output:?}"),
        Err(e) => eprintln!("skipped systemd-analyze verify: {e}"),
    }
}

#[test]
fn the_image_is_what_the_manifest_runs() {
    let docker = read("deploy/Dockerfile");
    let lines: Vec<&str> = docker.lines().collect();
    let starts =
        |with: &str| lines.iter().find(|line| line.starts_with(with)).unwrap_or_else(|| panic!("{with}"));
    let rust = read("Cargo.toml");
    let (_, rust) = rust.split_once("rust-version = \"").unwrap();
    let rust = rust.split('"').next().unwrap();
    assert!(starts("FROM rust:").starts_with(&format!("FROM rust:{rust}-")));
    assert_eq!(*starts("ENTRYPOINT"), "ENTRYPOINT [\"anysplit\"]");
    let copied = starts("COPY LICENSE").split_whitespace().skip(1);
    copied.filter(|file| !file.starts_with('/')).for_each(|file| assert!(path(file).exists(), "{file}"));

    let text = read("deploy/kubernetes/leaderworkerset.yaml");
    let set: LeaderWorkerSet = serde_saphyr::from_str(text.split("\n---\n").next().unwrap()).unwrap();
    let pod = set.spec.leader_worker_template.worker_template.spec;
    let image = &pod.containers[0].image;
    assert_eq!(*image, format!("anysplit:{}", env!("CARGO_PKG_VERSION")));
    assert!(read("deploy/README.md").contains(&format!("--tag {image} .")));
    let security = pod.security_context;
    assert_eq!(*starts("USER"), format!("USER {}:{}", security.run_as_user, security.run_as_group));
}

#[test]
fn what_we_have_not_run_says_so() {
    let clouds = read("docs/clouds.md");
    for section in
        clouds.split("\n## ").filter(|section| section.contains("cards") && section.contains("launch --n"))
    {
        let is_rehearsal = section.starts_with("Rehearsal");
        assert!(is_rehearsal || section.contains("**Not run by us; needs the CUDA device"), "{section}");
        assert!(section.to_lowercase().contains("runs now"), "a CPU equivalent: {section}");
    }
    assert!(read("deploy/README.md").contains("None of them has been run by us"));
}
