//! The only way out: the calls to the coordinator, each of which takes a message that the egress journal holds.
//!
//! The client that can send is private to this file and never lent; so whatever the rest of the agent does, it can send only
//! what [`Egress::note`](crate::egress::Egress::note) gave it. Sockets beside it are the sandbox's affair.

use crate::egress::Journalled;
use falaj_core::update::SignedUpdate;
use falaj_proto::{
    CHUNK_BYTES_MAX,
    v1::{
        AnswerRequest, CheckpointReply, CheckpointRequest, ConnectRequest, CosignRequest,
        DeclineRequest, EnrolReply, EnrolRequest, FetchModelRequest, ModelPart, ProbeAnswer,
        ProveInclusionReply, ProveInclusionRequest, Push, RenewReply, RenewRequest,
        SubmitUpdateReply, UpdateOpen, UpdatePart, enrolment_client::EnrolmentClient,
        federation_client::FederationClient, update_part,
    },
};
use std::time::Duration;
use tonic::{Request, Status, Streaming, transport::Channel};

/// What may be an authority elsewhere is waited for so long.
const CALL: Duration = Duration::from_mins(1);

/// Asks for a site's first certificate. A site that enrols has no journal yet: what leaves is its token and a signing request.
///
/// # Errors
/// What the coordinator answers.
pub(crate) async fn enrol(
    channel: Channel,
    asked: EnrolRequest,
    message_bytes_max: usize,
) -> Result<EnrolReply, Status> {
    let mut client = EnrolmentClient::new(channel).max_decoding_message_size(message_bytes_max);
    let mut asked = Request::new(asked);
    asked.set_timeout(CALL);
    Ok(client.enrol(asked).await?.into_inner())
}

/// An open connection that sends what is journalled.
#[derive(Clone)]
pub struct Wire {
    client: FederationClient<Channel>,
}

impl Wire {
    pub(crate) fn new(channel: Channel, message_bytes_max: usize) -> Self {
        let client = FederationClient::new(channel).max_decoding_message_size(message_bytes_max);
        Self { client }
    }

    /// Says hello, and opens the stream on which tasks are pushed.
    ///
    /// # Errors
    /// What the coordinator answers.
    pub async fn connect(
        &mut self,
        hello: Journalled<ConnectRequest>,
    ) -> Result<Streaming<Push>, Status> {
        Ok(self.client.connect(hello.into_message()).await?.into_inner())
    }

    /// Asks for another certificate about the site's key.
    ///
    /// # Errors
    /// What the coordinator answers; it has a minute for it.
    pub async fn renew(&mut self, message: Journalled<RenewRequest>) -> Result<RenewReply, Status> {
        let mut asked = Request::new(message.into_message());
        asked.set_timeout(CALL);
        Ok(self.client.renew(asked).await?.into_inner())
    }

    /// Answers a probe.
    ///
    /// # Errors
    /// What the coordinator answers.
    pub async fn answer_probe(&mut self, message: Journalled<ProbeAnswer>) -> Result<(), Status> {
        self.client.answer_probe(message.into_message()).await.map(drop)
    }

    /// Declines a round.
    ///
    /// # Errors
    /// What the coordinator answers.
    pub async fn decline(&mut self, message: Journalled<DeclineRequest>) -> Result<(), Status> {
        self.client.decline(message.into_message()).await.map(drop)
    }

    /// Answers in a masked round.
    ///
    /// # Errors
    /// What the coordinator answers.
    pub async fn answer(&mut self, message: Journalled<AnswerRequest>) -> Result<(), Status> {
        self.client.answer(message.into_message()).await.map(drop)
    }

    /// Asks for a model.
    ///
    /// # Errors
    /// What the coordinator answers.
    pub async fn fetch_model(
        &mut self,
        message: Journalled<FetchModelRequest>,
    ) -> Result<Streaming<ModelPart>, Status> {
        Ok(self.client.fetch_model(message.into_message()).await?.into_inner())
    }

    /// Asks for a checkpoint.
    ///
    /// # Errors
    /// What the coordinator answers.
    pub async fn checkpoint(
        &mut self,
        message: Journalled<CheckpointRequest>,
    ) -> Result<CheckpointReply, Status> {
        Ok(self.client.checkpoint(message.into_message()).await?.into_inner())
    }

    /// Sends a cosignature.
    ///
    /// # Errors
    /// What the coordinator answers.
    pub async fn cosign(&mut self, message: Journalled<CosignRequest>) -> Result<(), Status> {
        self.client.cosign(message.into_message()).await.map(drop)
    }

    /// Asks for the proof of an entry.
    ///
    /// # Errors
    /// What the coordinator answers.
    pub async fn prove_inclusion(
        &mut self,
        message: Journalled<ProveInclusionRequest>,
    ) -> Result<ProveInclusionReply, Status> {
        Ok(self.client.prove_inclusion(message.into_message()).await?.into_inner())
    }

    /// Sends an update in chunks.
    ///
    /// # Errors
    /// What the coordinator answers.
    pub async fn submit(
        &mut self,
        update: Journalled<&SignedUpdate>,
    ) -> Result<SubmitUpdateReply, Status> {
        let update = update.into_message();
        let open = UpdateOpen {
            header: update.header().to_vec().into(),
            signature: update.signature().to_vec().into(),
        };
        let payload = bytes::Bytes::copy_from_slice(update.payload());
        let chunks = (0..payload.len()).step_by(CHUNK_BYTES_MAX).map(move |at| {
            let end = (at + CHUNK_BYTES_MAX).min(payload.len());
            update_part::Part::Chunk(payload.slice(at..end))
        });
        let parts = std::iter::once(update_part::Part::Open(open))
            .chain(chunks)
            .map(|part| UpdatePart { part: Some(part) })
            .collect::<Vec<_>>();
        Ok(self.client.submit_update(tokio_stream::iter(parts)).await?.into_inner())
    }
}
