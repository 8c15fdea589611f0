//! The fields of the manifest, as the schemas of LeaderWorkerSet (leaderworkerset.x-k8s.io/v1) and Kubernetes name them: an
//! unknown field or a missing required one is an error.

#![expect(dead_code, reason = "a field stands here so that the parser checks it")]

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

type Labels = BTreeMap<String, String>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct LeaderWorkerSet {
    pub api_version: String,
    pub kind: String,
    pub metadata: Metadata,
    pub spec: LeaderWorkerSetSpec,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct LeaderWorkerSetSpec {
    pub replicas: u32,
    pub startup_policy: StartupPolicy,
    pub leader_worker_template: LeaderWorkerTemplate,
}

#[derive(Deserialize)]
pub enum StartupPolicy {
    LeaderCreated,
    LeaderReady,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct LeaderWorkerTemplate {
    pub size: u32,
    pub restart_policy: RestartPolicy,
    pub worker_template: PodTemplate,
}

#[derive(Deserialize, PartialEq, Debug)]
pub enum RestartPolicy {
    RecreateGroupOnPodRestart,
    RecreateGroupAfterStart,
    None,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodTemplate {
    pub metadata: Metadata,
    pub spec: PodSpec,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    pub name: Option<String>,
    #[serde(default)]
    pub labels: Labels,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct PodSpec {
    pub termination_grace_period_seconds: u32,
    pub automount_service_account_token: bool,
    pub security_context: PodSecurity,
    pub containers: Vec<Container>,
    pub volumes: Vec<Volume>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct PodSecurity {
    pub run_as_non_root: bool,
    pub run_as_user: u32,
    pub run_as_group: u32,
    pub fs_group: u32,
    pub seccomp_profile: Typed,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Typed {
    #[serde(rename = "type")]
    pub kind: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Container {
    pub name: String,
    pub image: String,
    pub image_pull_policy: String,
    pub command: Vec<String>,
    pub args: Vec<String>,
    pub env: Vec<Variable>,
    pub ports: Vec<Port>,
    pub resources: BTreeMap<String, Labels>,
    pub security_context: Value,
    pub volume_mounts: Vec<Mount>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variable {
    pub name: String,
    pub value: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Port {
    pub name: String,
    pub container_port: u16,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Mount {
    pub name: String,
    pub mount_path: String,
    #[serde(default)]
    pub read_only: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Volume {
    pub name: String,
    pub secret: Option<SecretVolume>,
    pub empty_dir: Option<Labels>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct SecretVolume {
    pub secret_name: String,
    pub default_mode: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct NetworkPolicy {
    pub api_version: String,
    pub kind: String,
    pub metadata: Metadata,
    pub spec: NetworkPolicySpec,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct NetworkPolicySpec {
    pub pod_selector: Selector,
    pub policy_types: Vec<String>,
    pub ingress: Vec<Ingress>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ingress {
    pub from: Vec<Peer>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Peer {
    pub pod_selector: Selector,
}

#[derive(Deserialize, PartialEq, Debug)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Selector {
    pub match_labels: Labels,
}
