//! Replication mode, which tokio-postgres does not know: its startup packet gets one parameter more.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{TlsConnect, TlsStream};

/// A stream that adds `replication=true` to the startup packet, which tokio-postgres cannot. Everything
/// else passes: before the packet there may be a request for TLS, after it there is nothing to change.
#[derive(Debug)]
pub(super) struct Startup<S> {
    inner: S,
    state: Patch,
}

#[derive(Debug)]
enum Patch {
    /// The packet has not come by yet.
    Waiting,
    /// Part of the changed packet has been written.
    Writing {
        packet: Vec<u8>,
        written: usize,
        original: usize,
    },
    /// Nothing left to do.
    Done,
}

impl<S> Startup<S> {
    /// Changes the packet, or nothing at all.
    pub(super) fn new(inner: S, replication: bool) -> Self {
        let state = if replication {
            Patch::Waiting
        } else {
            Patch::Done
        };
        Self { inner, state }
    }
}

/// The startup packet (PostgreSQL documentation, "Message Formats", StartupMessage) with one parameter
/// more; `None` when the bytes are something else.
pub(crate) fn with_replication(packet: &[u8]) -> Option<Vec<u8>> {
    const PROTOCOL_3_0: [u8; 4] = [0, 3, 0, 0];
    let length = u32::from_be_bytes(packet.get(..4)?.try_into().ok()?);
    let whole = usize::try_from(length).ok()? == packet.len();
    if !whole || packet.get(4..8)? != PROTOCOL_3_0 {
        return None;
    }
    let (end, body) = packet.get(8..)?.split_last()?;
    let parameter = b"replication\0true\0";
    let length = length.checked_add(u32::try_from(parameter.len()).ok()?)?;
    let mut changed = length.to_be_bytes().to_vec();
    changed.extend(PROTOCOL_3_0);
    changed.extend(body);
    changed.extend(parameter);
    changed.push(*end);
    Some(changed)
}

impl<S: AsyncRead + Unpin> AsyncRead for Startup<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Startup<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if matches!(this.state, Patch::Waiting)
            && let Some(packet) = with_replication(buf)
        {
            this.state = Patch::Writing {
                packet,
                written: 0,
                original: buf.len(),
            };
        }
        // A caller that got `Pending` comes back with the same bytes.
        while let Patch::Writing {
            packet,
            written,
            original,
        } = &mut this.state
        {
            let rest = packet.get(*written..).unwrap_or_default();
            if rest.is_empty() {
                let original = *original;
                this.state = Patch::Done;
                return Poll::Ready(Ok(original));
            }
            let count = ready!(Pin::new(&mut this.inner).poll_write(cx, rest))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            *written += count;
        }
        Pin::new(&mut this.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl<S: TlsStream + Unpin> TlsStream for Startup<S> {
    fn channel_binding(&self) -> tokio_postgres::tls::ChannelBinding {
        self.inner.channel_binding()
    }
}

/// Puts a [`Startup`] inside the TLS session.
pub(super) struct Inside<C> {
    /// Makes the TLS session.
    pub(super) connector: C,
    /// Whether the packet is changed.
    pub(super) replication: bool,
}

impl<S, C> TlsConnect<S> for Inside<C>
where
    C: TlsConnect<S>,
    C::Future: Send + 'static,
    C::Stream: Unpin + 'static,
    C::Error: 'static,
{
    type Stream = Startup<C::Stream>;
    type Error = C::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Stream, C::Error>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        let handshake = self.connector.connect(stream);
        let replication = self.replication;
        Box::pin(async move { Ok(Startup::new(handshake.await?, replication)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packet(body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 8).expect("short");
        let mut packet = length.to_be_bytes().to_vec();
        packet.extend([0, 3, 0, 0]);
        packet.extend(body);
        packet
    }

    #[test]
    fn only_a_startup_packet_is_changed() {
        let changed = with_replication(&packet(b"user\0a\0\0")).expect("a startup packet");
        assert_eq!(changed, packet(b"user\0a\0replication\0true\0\0"));
        let ssl_request = [0, 0, 0, 8, 4, 210, 22, 47];
        assert_eq!(with_replication(&ssl_request), None);
        assert_eq!(
            with_replication(&packet(b"user\0a\0\0")[..10]),
            None,
            "not whole"
        );
        assert_eq!(with_replication(b""), None);
    }

    proptest! {
        #[test]
        fn packet_reader_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = with_replication(&bytes);
        }
    }
}
