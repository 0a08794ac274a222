//! An MLflow server, over its REST API (2.0): what is asked of it, and no more than it takes at once.

use super::{TrackingError, words::Metric};
use crate::{
    config::{TrackingConfig, is_loopback},
    endpoints::Within,
    trusted::Trusted,
};
use anyhow::{Context as _, Result, ensure};
use falaj_certs::{
    keys::read_secret,
    tls::{provider, web_client_config},
};
use reqwest::{
    Client, RequestBuilder, StatusCode, Url,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue},
    redirect,
};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

/// A server that has not answered by then is away.
const PATIENCE: Duration = Duration::from_secs(20);
/// The longest answer that is read: a run with the newest figure of each of its series.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Figures in one request, as MLflow takes them.
pub(super) const METRICS_MAX: usize = 1_000;
/// Parameters in one request, likewise, and tags.
pub(super) const WORDS_MAX: usize = 100;
/// Runs of one study that are looked at: more than one are there only if an answer of MLflow's was lost.
const RUNS_MAX: u32 = 10;
/// What MLflow says of a thing that is not there.
const MISSING: &str = "RESOURCE_DOES_NOT_EXIST";
/// And of one that somebody else has made meanwhile.
const EXISTS: &str = "RESOURCE_ALREADY_EXISTS";

/// A server that can be told of studies.
pub struct Mlflow {
    http: Client,
    /// Where its API is, with a slash at the end.
    api: Url,
    token: Option<HeaderValue>,
}

/// A run as MLflow has it.
#[derive(Clone, Debug, Default)]
pub(super) struct Run {
    pub(super) id: String,
    /// Somebody has put it into MLflow's bin.
    pub(super) is_deleted: bool,
    /// The names of its parameters, which never change.
    params: BTreeSet<String>,
    tags: BTreeMap<String, String>,
    /// Of each series the newest figure's step and time.
    newest: BTreeMap<String, (i64, i64)>,
}

impl Run {
    /// Whether it may lack this figure. Those of a series are sent in order.
    pub(super) fn lacks(&self, metric: &Metric) -> bool {
        self.newest.get(&metric.key).is_none_or(|newest| (metric.step, metric.timestamp) > *newest)
    }

    /// Whether it has a parameter of this name.
    pub(super) fn has_param(&self, name: &str) -> bool {
        self.params.contains(name)
    }

    /// Parameters that it was given.
    pub(super) fn has_now(&mut self, params: impl Iterator<Item = String>) {
        self.params.extend(params);
    }

    /// The number in one of its tags.
    pub(super) fn number(&self, tag: &str) -> Option<u64> {
        self.tags.get(tag)?.parse().ok()
    }
}

#[derive(Default, Deserialize)]
struct Failure {
    #[serde(default)]
    error_code: String,
    #[serde(default)]
    message: String,
}

#[derive(Deserialize)]
struct Experiments {
    experiment: Experiment,
}

#[derive(Deserialize)]
struct Experiment {
    experiment_id: String,
    #[serde(default)]
    lifecycle_stage: String,
}

#[derive(Deserialize)]
struct Made {
    experiment_id: String,
}

#[derive(Deserialize)]
struct Runs {
    #[serde(default)]
    runs: Vec<RunJson>,
}

#[derive(Deserialize)]
struct OneRun {
    run: RunJson,
}

#[derive(Deserialize)]
struct RunJson {
    info: InfoJson,
    #[serde(default)]
    data: DataJson,
}

#[derive(Deserialize)]
struct InfoJson {
    run_id: String,
    #[serde(default)]
    lifecycle_stage: String,
}

#[derive(Default, Deserialize)]
struct DataJson {
    #[serde(default)]
    metrics: Vec<NewestJson>,
    #[serde(default)]
    params: Vec<WordJson>,
    #[serde(default)]
    tags: Vec<WordJson>,
}

#[derive(Deserialize)]
struct NewestJson {
    key: String,
    #[serde(default)]
    timestamp: i64,
    #[serde(default)]
    step: i64,
}

#[derive(Deserialize)]
struct WordJson {
    key: String,
    #[serde(default)]
    value: String,
}

/// A word in a request: a parameter or a tag.
#[derive(Serialize)]
struct Said<'a> {
    key: &'a str,
    value: &'a str,
}

/// Names and values, as requests have them.
fn said<'a>(words: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<Said<'a>> {
    words.into_iter().map(|(key, value)| Said { key, value }).collect()
}

impl From<RunJson> for Run {
    fn from(run: RunJson) -> Self {
        let newest = run.data.metrics.into_iter().map(|m| (m.key, (m.step, m.timestamp)));
        Self {
            id: run.info.run_id,
            is_deleted: run.info.lifecycle_stage == "deleted",
            params: run.data.params.into_iter().map(|p| p.key).collect(),
            tags: run.data.tags.into_iter().map(|t| (t.key, t.value)).collect(),
            newest: newest.collect(),
        }
    }
}

impl Mlflow {
    /// The server that a configuration names. Nothing is sent yet. It is not connected to at an address outside the place in
    /// which it is declared.
    ///
    /// # Errors
    /// What is wrong with the configuration, and what to do.
    pub fn load(config: &TrackingConfig, trusted: &Trusted) -> Result<Self> {
        let at = || format!("`tracking.mlflow` is `{}`", config.mlflow);
        let url: Url = config.mlflow.parse().with_context(at)?;
        ensure!(
            url.username().is_empty() && url.password().is_none(),
            "`tracking.mlflow` holds a name or a password: name a file in `tracking.token_file` instead"
        );
        let tls = match (url.scheme(), &config.ca) {
            ("https", Some(ca)) => {
                let roots = CertificateDer::pem_file_iter(ca)
                    .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                    .with_context(|| format!("`tracking.ca`: {}", ca.display()))?;
                web_client_config(roots)
                    .with_context(|| format!("`tracking.ca`: {}", ca.display()))?
            }
            ("https", None) => anyhow::bail!(
                "{}: https needs `tracking.ca`, certificates of those who may vouch for it",
                at()
            ),
            ("http", _) => {
                ensure!(
                    is_loopback(&url),
                    "{}: http is for this machine's own addresses alone, since nothing is hidden on the way; begin it with https://",
                    at()
                );
                // Nobody is trusted for TLS, which is not used.
                rustls::ClientConfig::builder_with_provider(Arc::new(provider()))
                    .with_safe_default_protocol_versions()?
                    .with_root_certificates(rustls::RootCertStore::empty())
                    .with_no_client_auth()
            }
            _ => anyhow::bail!("{}: it begins with https://", at()),
        };
        let token = config.token_file.as_ref().map(|path| {
            let named = || format!("`tracking.token_file`: {}", path.display());
            let secret = read_secret(path).with_context(named)?;
            let text = std::str::from_utf8(secret.trim_ascii()).with_context(named)?;
            ensure!(!text.is_empty(), "{} is empty", named());
            let mut token = HeaderValue::from_str(&format!("Bearer {text}")).with_context(named)?;
            token.set_sensitive(true);
            Ok::<_, anyhow::Error>(token)
        });
        let api = format!("{}/api/2.0/mlflow/", config.mlflow.trim_end_matches('/'));
        let http = Client::builder()
            .tls_backend_preconfigured(tls)
            .dns_resolver(Arc::new(Within::new(trusted.clone(), config.place.clone())))
            .no_proxy()
            .redirect(redirect::Policy::none())
            .timeout(PATIENCE)
            .user_agent(concat!("falaj-coordinator/", env!("CARGO_PKG_VERSION")))
            .build()
            .with_context(at)?;
        Ok(Self { http, api: api.parse().with_context(at)?, token: token.transpose()? })
    }

    /// The experiment of this name, which is made if there is none.
    ///
    /// # Errors
    /// [`TrackingError`].
    pub(super) async fn experiment(&self, name: &str) -> Result<String, TrackingError> {
        if let Some(id) = self.experiment_there(name).await? {
            return Ok(id);
        }
        match self.post::<Made>("experiments/create", &json!({ "name": name })).await {
            Ok(made) => Ok(made.experiment_id),
            Err(TrackingError::Refused { code, .. }) if code == EXISTS => {
                let there = self.experiment_there(name).await?;
                there.ok_or_else(|| TrackingError::Deleted(format!("the experiment `{name}`")))
            }
            Err(e) => Err(e),
        }
    }

    async fn experiment_there(&self, name: &str) -> Result<Option<String>, TrackingError> {
        let of = "experiments/get-by-name";
        let mut url = self.url(of)?;
        url.query_pairs_mut().append_pair("experiment_name", name);
        match self.send::<Experiments>(of, self.http.get(url)).await {
            Ok(found) if found.experiment.lifecycle_stage == "deleted" => {
                Err(TrackingError::Deleted(format!("the experiment `{name}`")))
            }
            Ok(found) => Ok(Some(found.experiment.experiment_id)),
            Err(TrackingError::Refused { code, .. }) if code == MISSING => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The run in an experiment that has all these tags, deleted or not.
    ///
    /// # Errors
    /// [`TrackingError`].
    pub(super) async fn run_with(
        &self,
        experiment: &str,
        tags: &[(&str, &str)],
    ) -> Result<Option<Run>, TrackingError> {
        let wanted: Vec<_> =
            tags.iter().map(|(key, is)| format!("tags.`{key}` = '{is}'")).collect();
        let asked = json!({
            "experiment_ids": [experiment],
            "filter": wanted.join(" and "),
            "run_view_type": "ALL",
            "max_results": RUNS_MAX,
        });
        let mut found = self.post::<Runs>("runs/search", &asked).await?.runs;
        // The same one each time, and one that somebody sees first.
        let order =
            |run: &RunJson| (run.info.lifecycle_stage == "deleted", run.info.run_id.clone());
        found.sort_by_key(order);
        Ok(found.into_iter().next().map(Run::from))
    }

    /// Makes a run.
    ///
    /// # Errors
    /// [`TrackingError`].
    pub(super) async fn make_run(
        &self,
        experiment: &str,
        name: &str,
        start_time: i64,
        tags: &[(&str, &str)],
    ) -> Result<Run, TrackingError> {
        let asked = json!({
            "experiment_id": experiment,
            "run_name": name,
            "start_time": start_time,
            "tags": said(tags.iter().copied()),
        });
        Ok(self.post::<OneRun>("runs/create", &asked).await?.run.into())
    }

    /// Adds to a run, in one request: at most [`METRICS_MAX`] figures, and [`WORDS_MAX`] parameters and tags each. MLflow sets the
    /// tags last.
    ///
    /// # Errors
    /// [`TrackingError`].
    pub(super) async fn log<'a>(
        &self,
        run: &str,
        metrics: &[Metric],
        params: impl IntoIterator<Item = (&'a str, &'a str)>,
        tags: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<(), TrackingError> {
        let asked = json!({
            "run_id": run,
            "metrics": metrics,
            "params": said(params),
            "tags": said(tags),
        });
        self.post::<Value>("runs/log-batch", &asked).await.map(drop)
    }

    /// Ends a run.
    ///
    /// # Errors
    /// [`TrackingError`].
    pub(super) async fn end(
        &self,
        run: &str,
        status: &str,
        end_time: i64,
    ) -> Result<(), TrackingError> {
        let asked = json!({ "run_id": run, "status": status, "end_time": end_time });
        self.post::<Value>("runs/update", &asked).await.map(drop)
    }

    fn url(&self, of: &'static str) -> Result<Url, TrackingError> {
        self.api.join(of).map_err(|e| TrackingError::Garbled(of, e.to_string()))
    }

    async fn post<T: DeserializeOwned>(
        &self,
        of: &'static str,
        asked: &Value,
    ) -> Result<T, TrackingError> {
        let request = self.http.post(self.url(of)?).header(CONTENT_TYPE, "application/json");
        self.send(of, request.body(asked.to_string())).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        of: &'static str,
        mut request: RequestBuilder,
    ) -> Result<T, TrackingError> {
        // The address is the operator's, and is in the configuration.
        let away = |e: reqwest::Error| TrackingError::Away(e.without_url());
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, token.clone());
        }
        let mut answer = request.send().await.map_err(away)?;
        let status = answer.status();
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(away)? {
            if bytes.len() + chunk.len() > ANSWER_BYTES_MAX {
                let what = format!("it is longer than {ANSWER_BYTES_MAX} bytes");
                return Err(TrackingError::Garbled(of, what));
            }
            bytes.extend_from_slice(&chunk);
        }
        if status == StatusCode::OK {
            return serde_json::from_slice(&bytes)
                .map_err(|e| TrackingError::Garbled(of, e.to_string()));
        }
        // Whoever stands before MLflow answers in other words.
        let told = serde_json::from_slice::<Failure>(&bytes).unwrap_or_default();
        let said = told.message.chars().filter(|c| !c.is_control()).take(300).collect();
        Err(TrackingError::Refused { of, status, code: told.error_code, said })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_sent_once_and_those_of_another_try_after_it() {
        let json = r#"{"info":{"run_id":"a","lifecycle_stage":"active"},"data":{"metrics":[{"key":"roc_auc","value":0.5,"timestamp":20,"step":3}],"params":[{"key":"rounds.count","value":"9"}],"tags":[{"key":"falaj.log_index","value":"17"}]}}"#;
        let run = Run::from(serde_json::from_str::<RunJson>(json).expect("a run"));
        let metric = |key: &str, step, timestamp| Metric {
            key: key.to_owned(),
            value: 0.5,
            timestamp,
            step,
        };
        assert!(!run.lacks(&metric("roc_auc", 3, 20)));
        assert!(!run.lacks(&metric("roc_auc", 2, 30)));
        // The third round is tried again.
        assert!(run.lacks(&metric("roc_auc", 3, 21)));
        assert!(run.lacks(&metric("brier", 1, 10)));
        assert!(run.has_param("rounds.count") && !run.has_param("rounds.retries"));
        assert_eq!(run.number("falaj.log_index"), Some(17));
        assert!(!run.is_deleted);
    }

    #[test]
    fn an_answer_without_what_mlflow_leaves_out_is_read() {
        let json = r#"{"run":{"info":{"run_id":"b","lifecycle_stage":"deleted"}}}"#;
        let run = Run::from(serde_json::from_str::<OneRun>(json).expect("a run").run);
        assert!(run.is_deleted && run.number("falaj.log_index").is_none());
        assert!(serde_json::from_str::<Runs>("{}").expect("none").runs.is_empty());
    }
}
