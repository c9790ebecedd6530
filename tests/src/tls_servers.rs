//! A private PostgreSQL and a private Redis that accept TLS on loopback ports and require passwords. An authority that is made
//! for the test signs their certificate. The tests themselves use the unix sockets, which need neither.

use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Uid};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use crate::{PrivatePostgres, PrivateRedis, World, free_port, scratch_folder, wait_until};

/// The keys and the commands that each process needs in Redis. `docs/SECURITY.md` has the same lists. `wallets` is the consumer
/// with that fold, and `operator` is the user of `audit` and `doctor`.
pub const REDIS_USERS: [(&str, &str, &str); 7] = [
    ("streamer", STREAM, "+info +xadd +xinfo|stream +eval +exists +renamenx"),
    ("consumer", STREAM, "+info +xread"),
    ("reaper", STREAM, "+info +xtrim"),
    ("dashboard", STREAM_AND_WALLETS, "+info +xinfo|stream +xlen +get +getrange"),
    ("api", WALLETS, "+info +get +getrange +set +del +eval"),
    ("wallets", STREAM_AND_WALLETS, "+info +xread +get +getrange +set +del +eval"),
    ("operator", STREAM_AND_WALLETS, "+info +xinfo|stream +xrange +type +time +config|get +scan +get +mget"),
];

const STREAM: &str = "~rocket-rides-log ~{rocket-rides-log}:set-aside:*";
const WALLETS: &str = "~rocket-rides-log:wallets ~wallet.*";
const STREAM_AND_WALLETS: &str =
    "~rocket-rides-log ~{rocket-rides-log}:set-aside:* ~rocket-rides-log:wallets ~wallet.*";

/// Both servers of one test.
pub struct TlsServers {
    /// Over TCP it accepts a role only with its password and over TLS. It accepts its superuser `app` in any way.
    pub postgres: PrivatePostgres,
    /// Its only port requires TLS.
    pub redis: PrivateRedis,
    postgres_port: u16,
    redis_port: u16,
    ca_file: PathBuf,
}

impl TlsServers {
    /// The password of every role.
    pub const POSTGRES_PASSWORD: &str = "hedgehog51";
    /// The password of every user of Redis, and of its default user.
    pub const REDIS_PASSWORD: &str = "badger72";

    /// Starts both servers.
    pub async fn start() -> Self {
        let folder = scratch_folder();
        let identity = Identity::new(&folder);
        let (postgres_port, redis_port) = (free_port(), free_port());
        let port = format!("port={postgres_port}");
        let postgres = PrivatePostgres::start_with(&["fsync=off", "listen_addresses=127.0.0.1", &port]).await;
        identity.give_to(&postgres).await;
        let tls_port = redis_port.to_string();
        let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
        let (certificate, key, authority) = (path("server.crt"), path("server.key"), path("ca.pem"));
        let settings = [
            ["--bind", "127.0.0.1"],
            ["--tls-port", &tls_port],
            ["--tls-cert-file", &certificate],
            ["--tls-key-file", &key],
            ["--tls-ca-cert-file", &authority],
            ["--tls-auth-clients", "no"],
        ];
        let redis = PrivateRedis::start_in(folder.clone(), settings.as_flattened()).await;
        let servers = Self { postgres, redis, postgres_port, redis_port, ca_file: folder.join("ca.pem") };
        let mut open = stream::redis::connect(&stream::redis::client(&servers.redis.url()).unwrap()).await.unwrap();
        let mut set = redis::cmd("CONFIG");
        let set = set.arg("SET").arg("requirepass").arg(Self::REDIS_PASSWORD);
        let () = set.query_async(&mut open).await.unwrap();
        servers
    }

    /// A world on these servers. Every role has its password, and every process has a user in Redis with only the rights that
    /// `docs/SECURITY.md` lists.
    pub async fn world(&self) -> World {
        let redis_url = format!("{}?pass={}", self.redis.url(), Self::REDIS_PASSWORD);
        let mut world = World::on(&self.postgres.url(), &redis_url).await;
        world.forget_database();
        for name in ["api", "streamer", "consumer", "reaper", "operator"] {
            let set = format!("ALTER ROLE rocket_{name} PASSWORD '{}'", Self::POSTGRES_PASSWORD);
            world.client().batch_execute(&set).await.unwrap();
        }
        let (mut redis, key) = (world.redis().await, world.stream_name());
        for (user, keys, commands) in REDIS_USERS {
            let mut set = redis::cmd("ACL");
            set.arg("SETUSER").arg(user).arg("on").arg(format!(">{}", Self::REDIS_PASSWORD));
            let keys = keys.replace("rocket-rides-log", key);
            keys.split(' ').chain(commands.split(' ')).for_each(|right| {
                set.arg(right);
            });
            let () = set.query_async(&mut redis).await.unwrap();
        }
        world
    }

    /// `TLS_CA_FILE`.
    pub fn ca_file(&self) -> &Path {
        &self.ca_file
    }

    /// `DATABASE_URL` for the process `name`, encrypted.
    pub fn database_url_of(&self, world: &World, name: &str) -> String {
        self.database_url(
            "localhost",
            world,
            &format!("rocket_{name}:{}", Self::POSTGRES_PASSWORD),
            "sslmode=verify-full",
        )
    }

    /// The world's database over TCP; `user` may have a password.
    pub fn database_url(&self, host: &str, world: &World, user: &str, options: &str) -> String {
        let database = world.database_name();
        format!("postgres://{user}@{host}:{}/{database}?{options}", self.postgres_port)
    }

    /// `REDIS_URL` for `user`, encrypted.
    pub fn redis_url(&self, user: &str, password: &str) -> String {
        format!("rediss://{user}:{password}@127.0.0.1:{}", self.redis_port)
    }

    /// The port that Redis listens on.
    pub fn redis_port(&self) -> u16 {
        self.redis_port
    }
}

/// Writes a certificate for this machine, `server.crt` with `server.key`, and the authority that signed it, `ca.pem`.
pub fn write_certificate(folder: &Path) {
    Identity::new(folder);
}

/// A certificate for this machine, signed by an authority that exists only in this test.
struct Identity {
    certificate: String,
    key: String,
}

impl Identity {
    /// Writes `ca.pem`, `server.crt` and `server.key` into a folder.
    fn new(folder: &Path) -> Self {
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // By default both have one name. OpenSSL then takes the certificate for one that signed itself, as nodes of a cluster do
        // with each other's.
        authority.distinguished_name.push(DnType::CommonName, "authority of a test");
        let authority_key = KeyPair::generate().unwrap();
        let authority_pem = authority.self_signed(&authority_key).unwrap().pem();
        let issuer = Issuer::new(authority, authority_key);
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap().pem();
        let identity = Self { certificate, key: key.serialize_pem() };
        write(folder, "ca.pem", &authority_pem, None);
        write(folder, "server.crt", &identity.certificate, None);
        write(folder, "server.key", &identity.key, None);
        identity
    }

    /// Installs the certificate in the data folder of Postgres, and reloads the configuration.
    async fn give_to(&self, postgres: &PrivatePostgres) {
        const WHO_MAY_ENTER: &str = "local   all all              trust
                                     host    all app 127.0.0.1/32 trust
                                     hostssl all all 127.0.0.1/32 scram-sha-256\n";
        let client = postgres.connect("postgres").await;
        let data: String = client.query_one("SHOW data_directory", &[]).await.unwrap().get(0);
        let data = PathBuf::from(data);
        // The server may run as another user than this test. It accepts a key only if the file belongs to that user or to root.
        let owner = std::fs::metadata(&data).unwrap();
        write(&data, "server.crt", &self.certificate, Some(&owner));
        write(&data, "server.key", &self.key, Some(&owner));
        write(&data, "pg_hba.conf", WHO_MAY_ENTER, Some(&owner));
        client.batch_execute("ALTER SYSTEM SET ssl = on").await.unwrap();
        client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
        wait_until("Postgres takes TLS", async || {
            let ssl: String = postgres.connect("postgres").await.query_one("SHOW ssl", &[]).await.unwrap().get(0);
            ssl == "on"
        })
        .await;
    }
}

/// Writes a file that only its owner can read.
fn write(folder: &Path, name: &str, text: &str, owner: Option<&std::fs::Metadata>) {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    if let Some(owner) = owner {
        nix::unistd::chown(&path, Some(Uid::from_raw(owner.uid())), Some(Gid::from_raw(owner.gid()))).unwrap();
    }
}
