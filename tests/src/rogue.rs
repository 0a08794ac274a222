//! A site that holds a real certificate and breaks the protocol in one chosen way.

use anyhow::{Context, Result, bail};
use falaj_certs::{
    tls::{self, Credentials, ServerExpectation},
    trust::TrustStore,
};
use falaj_core::{
    evaluation::{
        answer::{EvaluationHeader, SignedCounts},
        cells::{Block, Tally},
    },
    evidence,
    id::{Digest, RoundId},
    note,
    round::Phase,
    task::TaskHeader,
    tpm,
    update::UpdateHeader,
};
use falaj_proto::{
    CHUNK_BYTES_MAX,
    v1::{self, federation_client::FederationClient, push, update_part},
};
use hyper_util::rt::TokioIo;
use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::net::TcpSocket;
use tokio_rustls::TlsConnector;
use tokio_stream::StreamExt as _;
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint},
};

/// No answer takes longer.
const PATIENCE: Duration = Duration::from_mins(1);

/// A connection to the coordinator, as one site. A clone asks over the same one.
#[derive(Clone)]
pub struct Rogue {
    client: FederationClient<Channel>,
    credentials: Arc<Credentials>,
}

/// An open task stream with the first task that came on it.
pub struct Tasked {
    /// Keeps the site connected.
    pub stream: Streaming<v1::Push>,
    /// The task.
    pub task: TaskHeader,
    /// The study file.
    pub study: Vec<u8>,
}

/// What is sent as an update: every part may be false.
#[derive(Clone)]
pub struct Forgery {
    /// Header bytes as sent.
    pub header: Vec<u8>,
    /// Signature as sent.
    pub signature: Vec<u8>,
    /// Payload as sent.
    pub payload: Vec<u8>,
}

/// What is sent as counts about a candidate: every part may be false.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The round that it is said to be for.
    pub round: RoundId,
    /// The try of that round.
    pub attempt: u32,
    /// What was asked for.
    pub phase: String,
    /// Header, signature and counts as sent.
    pub messages: Vec<Vec<u8>>,
}

/// Counts as an honest site of 400 records has them before noise, in parts that a test can change.
#[derive(Clone, Debug)]
pub struct Counts {
    /// What is said about them.
    pub header: EvaluationHeader,
    /// The counts.
    pub counts: Vec<i64>,
    /// Where each block begins.
    pub starts: Vec<(Block, usize)>,
}

impl Counts {
    /// The first count of a block.
    ///
    /// # Panics
    /// When the study has no such block.
    pub fn of(&mut self, block: Block) -> &mut i64 {
        let start = self.starts.iter().find(|(b, _)| *b == block).expect("a block of the study").1;
        &mut self.counts[start]
    }
}

impl Tasked {
    /// Waits until the same round's candidate is to be evaluated.
    ///
    /// # Errors
    /// When nobody asks for that.
    pub async fn evaluates(&mut self) -> Result<()> {
        while self.task.evaluates.is_none() {
            (self.task, self.study) = next_task(&mut self.stream).await?;
        }
        Ok(())
    }

    /// Waits for the next round's task on the same stream. A task may come twice.
    ///
    /// # Errors
    /// When none comes.
    pub async fn again(&mut self) -> Result<()> {
        let before = self.task.round.clone();
        while self.task.round == before {
            (self.task, self.study) = next_task(&mut self.stream).await?;
        }
        Ok(())
    }
}

async fn next_task(stream: &mut Streaming<v1::Push>) -> Result<(TaskHeader, Vec<u8>)> {
    loop {
        let next = tokio::time::timeout(PATIENCE, stream.next()).await?;
        let push = next.context("the stream ended without a task")??;
        if let Some(push::Push::Task(task)) = push.push {
            return Ok((TaskHeader::parse(&task.header)?, task.study.to_vec()));
        }
    }
}

impl Rogue {
    /// Connects with `credentials`.
    ///
    /// # Errors
    /// When the address does not answer, or the handshake fails.
    pub async fn connect(
        address: SocketAddr,
        credentials: Credentials,
        trust: &TrustStore,
    ) -> Result<Self> {
        Self::connect_from(Ipv4Addr::LOCALHOST, address, credentials, trust).await
    }

    /// As [`Self::connect`], from an address of this machine.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn connect_from(
        from: Ipv4Addr,
        address: SocketAddr,
        credentials: Credentials,
        trust: &TrustStore,
    ) -> Result<Self> {
        let expect = ServerExpectation::coordinator(&["ae-on/*"]);
        let config = Arc::new(tls::client_config(&credentials, trust, &expect, &["h2"])?);
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?.timeout(PATIENCE);
        let channel = endpoint
            .connect_with_connector(tower::service_fn(move |_| {
                let connector = TlsConnector::from(config.clone());
                async move {
                    let socket = TcpSocket::new_v4()?;
                    socket.bind((from, 0).into())?;
                    let tcp = socket.connect(address).await?;
                    let name = address.ip().into();
                    Ok::<_, std::io::Error>(TokioIo::new(connector.connect(name, tcp).await?))
                }
            }))
            .await?;
        Ok(Self { client: FederationClient::new(channel), credentials: Arc::new(credentials) })
    }

    /// Opens the task stream.
    ///
    /// # Errors
    /// The coordinator's refusal.
    pub async fn open(&mut self) -> Result<Streaming<v1::Push>, Status> {
        self.open_as(v1::ConnectRequest::default()).await
    }

    /// As [`Self::open`], where the site also says what this request says of places and probes.
    ///
    /// # Errors
    /// The coordinator's refusal.
    pub async fn open_as(
        &mut self,
        hello: v1::ConnectRequest,
    ) -> Result<Streaming<v1::Push>, Status> {
        let request = v1::ConnectRequest {
            agent_version: "rogue".into(),
            datasets: vec!["wdbc".into()],
            trainers: vec!["linear".into()],
            ..hello
        };
        Ok(self.client.connect(request).await?.into_inner())
    }

    /// Answers a probe, by a clock of its own.
    ///
    /// # Errors
    /// The coordinator's refusal.
    ///
    /// # Panics
    /// Never: a key in memory signs.
    pub async fn answer_probe(&mut self, nonce: &[u8], clock_ms: i64) -> Result<(), Status> {
        let signed = evidence::probe_bytes(nonce, clock_ms);
        let signature = self.signed(evidence::CONTEXT, &signed).into();
        let answer = v1::ProbeAnswer { clock_ms, signature, ..Default::default() };
        self.client.answer_probe(answer).await?;
        Ok(())
    }

    /// Answers a probe with a quote, which need not be one.
    ///
    /// # Errors
    /// The coordinator's refusal.
    pub async fn give_quote(
        &mut self,
        nonce: &[u8],
        clock_ms: i64,
        (attest, attest_signature): (Vec<u8>, Vec<u8>),
    ) -> Result<(), Status> {
        let probe = evidence::probe_bytes(nonce, clock_ms);
        let signed = tpm::answer_bytes(&probe, &attest, &attest_signature);
        let signature = self.signed(tpm::CONTEXT, &signed).into();
        let (attest, attest_signature) = (attest.into(), attest_signature.into());
        let answer = v1::ProbeAnswer { clock_ms, signature, attest, attest_signature };
        self.client.answer_probe(answer).await?;
        Ok(())
    }

    /// Signs bytes with the site's own key, under any context.
    ///
    /// # Panics
    /// Never: a key in memory signs.
    #[must_use]
    pub fn signed(&self, context: &str, bytes: &[u8]) -> Vec<u8> {
        let key = self.credentials.signing_key();
        note::sign_context(&**key, context, bytes).expect("a key in memory").to_vec()
    }

    /// The log's newest checkpoint, and how many hashes prove that it goes on from one of `seen` entries.
    ///
    /// # Errors
    /// The coordinator's refusal.
    pub async fn checkpoint(&mut self, seen_size: u64) -> Result<(String, usize), Status> {
        let reply = self
            .client
            .checkpoint(v1::CheckpointRequest { seen_size, ..Default::default() })
            .await?
            .into_inner();
        Ok((reply.checkpoint, reply.proof.len()))
    }

    /// Sends a line as a cosignature.
    ///
    /// # Errors
    /// The coordinator's refusal.
    pub async fn cosign(&mut self, tree_size: u64, cosignature: &str) -> Result<(), Status> {
        let cosignature = cosignature.to_owned();
        self.client
            .cosign(v1::CosignRequest { tree_size, cosignature, ..Default::default() })
            .await?;
        Ok(())
    }

    /// How many hashes prove an entry.
    ///
    /// # Errors
    /// The coordinator's refusal.
    pub async fn inclusion(&mut self, index: u64, tree_size: u64) -> Result<usize, Status> {
        let wanted = v1::ProveInclusionRequest { index, tree_size, ..Default::default() };
        Ok(self.client.prove_inclusion(wanted).await?.into_inner().proof.len())
    }

    /// Opens the task stream and waits for a task.
    ///
    /// # Errors
    /// When the stream is refused or brings no task.
    pub async fn tasked(&mut self) -> Result<Tasked> {
        let mut stream = self.open().await?;
        let (task, study) = next_task(&mut stream).await?;
        Ok(Tasked { stream, task, study })
    }

    /// An update that is right in every respect: zeros, sealed on the study's grid.
    ///
    /// # Errors
    /// When the study cannot be read.
    pub fn honest(&self, tasked: &Tasked) -> Result<UpdateHeader> {
        let study = falaj_proto::study::parse(std::str::from_utf8(&tasked.study)?, "study.yaml")?;
        let payload = Self::zeros(tasked)?;
        let site = self.credentials.identity()?.spiffe.try_into()?;
        Ok(UpdateHeader {
            round: tasked.task.round.clone(),
            site,
            base: tasked.task.base,
            manifest: tasked.task.manifest,
            encoding: study.encoding(),
            params: u64::try_from(study.manifest()?.params())?,
            payload_bytes: u64::try_from(payload.len())?,
            payload: Digest::of(&payload),
            weight: 100,
            mechanism: study.privacy.mechanism.as_str().into(),
            epsilon: "1.0000".into(),
            cohort: None,
            ledger: Digest::of(b"ledger"),
        })
    }

    /// A payload of zeros for the task's study.
    ///
    /// # Errors
    /// When the study cannot be read.
    pub fn zeros(tasked: &Tasked) -> Result<Vec<u8>> {
        let study = falaj_proto::study::parse(std::str::from_utf8(&tasked.study)?, "study.yaml")?;
        let bytes = study.encoding().bytes_per_value();
        Ok(vec![0; study.manifest()?.params() * bytes])
    }

    /// Signs a header with the site's own key, which lies in a file.
    ///
    /// # Panics
    /// Never: a key in memory always signs.
    #[must_use]
    pub fn sign(&self, header: &[u8]) -> Vec<u8> {
        self.signed("falaj/update/v1", header)
    }

    /// Puts a header, its signature and a payload together.
    #[must_use]
    pub fn forge(&self, header: &UpdateHeader, payload: Vec<u8>) -> Forgery {
        let header = header.to_bytes();
        Forgery { signature: self.sign(&header), header, payload }
    }

    /// Counts about a candidate that are right in every respect.
    ///
    /// # Errors
    /// When the study cannot be read, or the task asks for no counts.
    pub fn counts(&self, tasked: &Tasked) -> Result<Counts> {
        let study = falaj_proto::study::parse(std::str::from_utf8(&tasked.study)?, "study.yaml")?;
        let e = study.evaluation.as_ref().context("the study has no evaluation")?;
        let layout = e.layout(study.target());
        let mut tally = Tally::new(layout.clone());
        for i in 0..400_u32 {
            let (class, p) = ((i % 2) as usize, f64::from(i % 100) / 100.0);
            tally.record(i as usize % e.groups(), class, &[1.0 - p, p]);
            for column in 0..e.drift.len() {
                tally.watched(column, i as usize % 3);
            }
        }
        let header = EvaluationHeader {
            round: tasked.task.round.clone(),
            attempt: tasked.task.evaluates.context("the task asks for no counts")?,
            site: self.credentials.identity()?.spiffe.try_into()?,
            study_sha256: tasked.task.study_sha256,
            candidate: tasked.task.base,
            counts: Digest::of(&[]),
            cells: 0,
            noise: e.noise.as_str().to_owned(),
            epsilon: "9.0000".to_owned(),
            ledger: Digest::of(b"ledger"),
        };
        let starts = layout.blocks().into_iter().map(|(block, range)| (block, range.start));
        Ok(Counts { header, starts: starts.collect(), counts: tally.into_counts() })
    }

    /// Signs counts with the site's own key, as an answer to what was asked of it.
    ///
    /// # Errors
    /// When the key cannot be used.
    pub fn answers(&self, tasked: &Tasked, counts: &Counts) -> Result<Answer> {
        let key = &**self.credentials.signing_key();
        let signed = SignedCounts::sign(counts.header.clone(), &counts.counts, key)?;
        Ok(Answer {
            round: tasked.task.round.clone(),
            attempt: tasked.task.evaluates.unwrap_or_default(),
            phase: Phase::Evaluation.as_str().to_owned(),
            messages: vec![signed.header, signed.signature.to_vec(), signed.counts],
        })
    }

    /// Sends an answer.
    ///
    /// # Errors
    /// The coordinator's refusal.
    pub async fn answer(&mut self, answer: Answer) -> Result<(), Status> {
        let Answer { round, attempt, phase, messages } = answer;
        let messages = messages.into_iter().map(Into::into).collect();
        let study = round.study.to_string();
        let request = v1::AnswerRequest { study, round: round.number, attempt, phase, messages };
        self.client.answer(request).await?;
        Ok(())
    }

    /// Sends an update in chunks.
    ///
    /// # Errors
    /// The coordinator's refusal.
    pub async fn submit(&mut self, forgery: Forgery) -> Result<v1::SubmitUpdateReply, Status> {
        let open =
            v1::UpdateOpen { header: forgery.header.into(), signature: forgery.signature.into() };
        let mut parts = vec![v1::UpdatePart { part: Some(update_part::Part::Open(open)) }];
        let mut payload = bytes::Bytes::from(forgery.payload);
        while !payload.is_empty() {
            let chunk = payload.split_to(payload.len().min(CHUNK_BYTES_MAX));
            parts.push(v1::UpdatePart { part: Some(update_part::Part::Chunk(chunk)) });
        }
        let reply = self.client.submit_update(tokio_stream::iter(parts)).await?;
        Ok(reply.into_inner())
    }

    /// Asks for a model.
    ///
    /// # Errors
    /// The coordinator's refusal.
    pub async fn fetch(&mut self, study: &str, model: &str) -> Result<u64> {
        let request = v1::FetchModelRequest { study: study.into(), model_sha256: model.into() };
        let mut stream = self.client.fetch_model(request).await?.into_inner();
        let mut bytes = 0;
        while let Some(part) = stream.next().await {
            match part?.part {
                Some(v1::model_part::Part::Open(_)) => {}
                Some(v1::model_part::Part::Chunk(c)) => bytes += c.len() as u64,
                None => bail!("an empty part"),
            }
        }
        Ok(bytes)
    }
}
