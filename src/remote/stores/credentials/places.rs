//! Where credentials of Google and Azure are looked for, in the order that their own tools keep.

use std::fmt::Debug;

use reqsign_azure_storage as azure;
use reqsign_core::{Context, Error, ProvideCredential, ProvideCredentialDyn};
use reqsign_google as google;

/// Places that are asked one after the other.
#[derive(Debug)]
pub(in crate::remote::stores) struct Places<C> {
    /// What the user names: a failure there is an error.
    pub(super) asked: Vec<Place<C>>,
    /// What the user sets up: a failure there is an error, unless a later place has credentials.
    pub(super) set_up: Vec<Place<C>>,
    /// What is there or not, such as a machine's own service: a failure means that there are none.
    pub(super) tried: Vec<Place<C>>,
}

pub(super) type Place<C> = Box<dyn ProvideCredentialDyn<Credential = C>>;

impl<C> Places<C> {
    /// None.
    pub(super) const fn nowhere() -> Self {
        Self { asked: Vec::new(), set_up: Vec::new(), tried: Vec::new() }
    }
}

impl<C: Debug + Send + Sync + Unpin + 'static> ProvideCredential for Places<C> {
    type Credential = C;

    async fn provide_credential(&self, context: &Context) -> Result<Option<C>, Error> {
        for place in &self.asked {
            if let Some(found) = place.provide_credential_dyn(context).await? {
                return Ok(Some(found));
            }
        }
        let mut failure = None;
        for place in &self.set_up {
            match place.provide_credential_dyn(context).await {
                Ok(Some(found)) => return Ok(Some(found)),
                Ok(None) => {}
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        for place in &self.tried {
            if let Ok(Some(found)) = place.provide_credential_dyn(context).await {
                return Ok(Some(found));
            }
        }
        failure.map_or(Ok(None), Err)
    }
}

impl Default for Places<google::Credential> {
    fn default() -> Self {
        Self {
            set_up: vec![
                Box::new(google::EnvCredentialProvider::default()),
                Box::new(google::WellKnownCredentialProvider::default()),
            ],
            tried: vec![Box::new(google::VmMetadataCredentialProvider::default())],
            ..Self::nowhere()
        }
    }
}

impl Default for Places<azure::Credential> {
    fn default() -> Self {
        Self {
            set_up: vec![
                Box::new(azure::EnvCredentialProvider::default()),
                Box::new(azure::ClientCertificateCredentialProvider::default()),
                Box::new(azure::ClientSecretCredentialProvider::default()),
                Box::new(azure::AzurePipelinesCredentialProvider::default()),
                Box::new(azure::WorkloadIdentityCredentialProvider::default()),
            ],
            tried: vec![
                Box::new(azure::AzureCliCredentialProvider::default()),
                Box::new(azure::ImdsCredentialProvider::default()),
            ],
            ..Self::nowhere()
        }
    }
}
