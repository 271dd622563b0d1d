//! The client's configuration is the one that all clients share.

pub use aws_credential_types::Credentials;
use aws_types::SdkConfig;
pub use aws_types::region::Region;

#[derive(Debug, Clone)]
pub struct Config(pub(crate) SdkConfig);

#[derive(Debug, Clone)]
pub struct Builder(SdkConfig);

impl Builder {
    pub fn build(self) -> Config {
        Config(self.0)
    }
}

impl From<&SdkConfig> for Builder {
    fn from(config: &SdkConfig) -> Self {
        Self(config.clone())
    }
}
