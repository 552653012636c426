//! Certificates for a server on this machine: an authority of the test's own, and what it has signed.

use std::fs;
use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;

pub struct Certificates {
    directory: TempDir,
}

impl Certificates {
    pub fn make() -> Certificates {
        let directory = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["127.0.0.1".into(), "localhost".into()]).unwrap();
        let certificate = params.signed_by(&key, &authority).unwrap();
        fs::write(directory.path().join("authority.pem"), authority.pem()).unwrap();
        fs::write(directory.path().join("certificate.pem"), certificate.pem()).unwrap();
        fs::write(directory.path().join("key.pem"), key.serialize_pem()).unwrap();
        Certificates { directory }
    }

    fn file(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().into()
    }

    pub fn authority(&self) -> String {
        self.file("authority.pem")
    }

    pub fn authority_pem(&self) -> Vec<u8> {
        fs::read(self.authority()).unwrap()
    }

    pub fn authority_path(&self) -> PathBuf {
        self.authority().into()
    }

    pub fn certificate(&self) -> String {
        self.file("certificate.pem")
    }

    pub fn key(&self) -> String {
        self.file("key.pem")
    }
}
