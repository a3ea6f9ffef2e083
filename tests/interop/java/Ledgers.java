import com.fasterxml.jackson.databind.JsonNode;
import java.util.ArrayList;
import java.util.Base64;
import java.util.Enumeration;
import java.util.HashMap;
import java.util.Iterator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import org.apache.bookkeeper.client.BookKeeper;
import org.apache.bookkeeper.client.LedgerEntry;
import org.apache.bookkeeper.client.LedgerHandle;
import org.apache.bookkeeper.client.api.BKException;
import org.apache.bookkeeper.client.api.CreateBuilder;
import org.apache.bookkeeper.client.api.DigestType;
import org.apache.bookkeeper.client.api.LastConfirmedAndEntry;
import org.apache.bookkeeper.client.api.LedgerEntries;
import org.apache.bookkeeper.client.api.LedgerMetadata;
import org.apache.bookkeeper.client.api.WriteFlag;

/** Everything that a client does with one ledger; handles by name. Bytes are in base64. */
final class Ledgers {
    private final Clients clients;
    private final Map<String, LedgerHandle> handles = new HashMap<>();
    private final Map<String, Adds> running = new HashMap<>();

    Ledgers(Clients clients) {
        this.clients = clients;
    }

    void register(Map<String, Driver.Operation> operations) {
        operations.put("create", this::create);
        operations.put("open", this::open);
        operations.put("close", this::close);
        operations.put("delete", this::delete);
        operations.put("add", this::add);
        operations.put("start_adds", this::startAdds);
        operations.put("wait_adds", this::waitAdds);
        operations.put("read", this::read);
        operations.put("force", a -> handle(a).force().get());
        operations.put("handle", this::describe);
        operations.put("read_lac", this::readLac);
        operations.put("poll", this::poll);
    }

    private LedgerHandle handle(JsonNode arguments) {
        LedgerHandle handle = handles.get(arguments.get("handle").asText());
        if (handle == null) {
            throw new IllegalArgumentException("no handle " + arguments.get("handle"));
        }
        return handle;
    }

    private static byte[] password(JsonNode arguments) {
        return Base64.getDecoder().decode(arguments.path("password").asText(""));
    }

    /** {client, handle, ensemble, write, ack, digest, password, custom: {K: base64}, adv, id, deferred}. */
    private Object create(JsonNode arguments) throws Exception {
        Map<String, byte[]> custom = new HashMap<>();
        Iterator<Map.Entry<String, JsonNode>> fields = arguments.path("custom").fields();
        while (fields.hasNext()) {
            Map.Entry<String, JsonNode> field = fields.next();
            custom.put(field.getKey(), Base64.getDecoder().decode(field.getValue().asText()));
        }
        CreateBuilder builder = clients.get(arguments).newCreateLedgerOp()
                .withEnsembleSize(arguments.path("ensemble").asInt(3))
                .withWriteQuorumSize(arguments.path("write").asInt(3))
                .withAckQuorumSize(arguments.path("ack").asInt(2))
                .withDigestType(DigestType.valueOf(arguments.path("digest").asText("CRC32C")))
                .withPassword(password(arguments))
                .withCustomMetadata(custom);
        if (arguments.path("deferred").asBoolean()) {
            builder = builder.withWriteFlags(WriteFlag.DEFERRED_SYNC);
        }
        LedgerHandle handle;
        if (arguments.path("adv").asBoolean()) {
            handle = (LedgerHandle) (arguments.has("id")
                    ? builder.makeAdv().withLedgerId(arguments.get("id").asLong()).execute().get()
                    : builder.makeAdv().execute().get());
        } else {
            handle = (LedgerHandle) builder.execute().get();
        }
        handles.put(arguments.get("handle").asText(), handle);
        return describe(arguments);
    }

    /** {client, handle, id, digest, password, recovery}. */
    private Object open(JsonNode arguments) throws Exception {
        LedgerHandle handle = (LedgerHandle) clients.get(arguments).newOpenLedgerOp()
                .withLedgerId(arguments.get("id").asLong())
                .withDigestType(DigestType.valueOf(arguments.path("digest").asText("CRC32C")))
                .withPassword(password(arguments))
                .withRecovery(arguments.path("recovery").asBoolean())
                .execute().get();
        handles.put(arguments.get("handle").asText(), handle);
        return describe(arguments);
    }

    private Object close(JsonNode arguments) throws Exception {
        handle(arguments).close();
        return describe(arguments);
    }

    private Object delete(JsonNode arguments) throws Exception {
        clients.get(arguments).deleteLedger(arguments.get("id").asLong());
        return true;
    }

    private Object describe(JsonNode arguments) {
        LedgerHandle handle = handle(arguments);
        Map<String, Object> description = new LinkedHashMap<>(metadata(handle.getLedgerMetadata()));
        description.put("id", handle.getId());
        description.put("lac", handle.getLastAddConfirmed());
        description.put("lap", handle.getLastAddPushed());
        description.put("size", handle.getLength());
        return description;
    }

    static Map<String, Object> metadata(LedgerMetadata metadata) {
        Map<String, Object> shown = new LinkedHashMap<>();
        shown.put("state", metadata.getState().toString());
        shown.put("ensemble_size", metadata.getEnsembleSize());
        shown.put("write_quorum_size", metadata.getWriteQuorumSize());
        shown.put("ack_quorum_size", metadata.getAckQuorumSize());
        shown.put("digest", String.valueOf(metadata.getDigestType()));
        shown.put("format", metadata.getMetadataFormatVersion());
        shown.put("last_entry_id", metadata.isClosed() ? metadata.getLastEntryId() : null);
        shown.put("length", metadata.isClosed() ? metadata.getLength() : null);
        Map<String, Object> ensembles = new LinkedHashMap<>();
        metadata.getAllEnsembles().forEach((first, bookies) -> {
            List<String> ids = new ArrayList<>();
            bookies.forEach(bookie -> ids.add(bookie.toString()));
            ensembles.put(String.valueOf(first), ids);
        });
        shown.put("ensembles", ensembles);
        Map<String, String> custom = new LinkedHashMap<>();
        metadata.getCustomMetadata().forEach(
                (key, value) -> custom.put(key, Base64.getEncoder().encodeToString(value)));
        shown.put("custom", custom);
        return shown;
    }

    /** {handle, count, size} or {handle, ids: [...], size}: all sent at once, ids in this order; wait_s. */
    private Object add(JsonNode arguments) throws Exception {
        Adds adds = new Adds(handle(arguments), arguments);
        adds.sendAll();
        return adds.await(arguments.path("wait_s").asInt(60));
    }

    /** As add, but goes on in the background, `outstanding` at a time, until an add fails. */
    private Object startAdds(JsonNode arguments) throws Exception {
        Adds adds = new Adds(handle(arguments), arguments);
        running.put(arguments.get("handle").asText(), adds);
        adds.startThread();
        return true;
    }

    /** {handle, wait_s}: {acked: COUNT, failed: COUNT, error: CLASS or null, last_acked: ID}. */
    private Object waitAdds(JsonNode arguments) throws Exception {
        return running.get(arguments.get("handle").asText()).await(arguments.path("wait_s").asInt(60));
    }

    /** {handle, first, last, how, entries}: digest of the entries read, and their bytes when asked for. */
    private Object read(JsonNode arguments) throws Exception {
        LedgerHandle handle = handle(arguments);
        long first = arguments.get("first").asLong();
        long last = arguments.get("last").asLong();
        Payload.Digest digest = new Payload.Digest();
        List<String> bodies = arguments.path("entries").asBoolean() ? new ArrayList<>() : null;
        int batches = 0;
        switch (arguments.path("how").asText("sync")) {
            case "sync":
                long chunk = arguments.path("chunk").asLong(last - first + 1);
                for (long from = first; from <= last; from += chunk) {
                    take(handle.readEntries(from, Math.min(last, from + chunk - 1)), digest, bodies);
                }
                break;
            case "callback":
                CompletableFuture<Enumeration<LedgerEntry>> done = new CompletableFuture<>();
                handle.asyncReadEntries(first, last, (rc, lh, entries, ctx) -> {
                    if (rc == 0) {
                        done.complete(entries);
                    } else {
                        done.completeExceptionally(org.apache.bookkeeper.client.BKException.create(rc));
                    }
                }, null);
                take(done.get(60, TimeUnit.SECONDS), digest, bodies);
                break;
            case "async":
                try (LedgerEntries entries = handle.readAsync(first, last).get(60, TimeUnit.SECONDS)) {
                    take(entries, digest, bodies);
                }
                break;
            case "unconfirmed":
                take(handle.readUnconfirmedEntries(first, last), digest, bodies);
                break;
            case "batch":
                batches = readBatches(handle, first, last, arguments, digest, bodies);
                break;
            default:
                throw new IllegalArgumentException("how: " + arguments.get("how"));
        }
        Map<String, Object> answer = new LinkedHashMap<>();
        answer.put("batches", batches);
        answer.put("count", digest.count);
        answer.put("bytes", digest.bytes);
        answer.put("sha256", digest.hex());
        if (bodies != null) {
            answer.put("entries", bodies);
        }
        return answer;
    }

    /** Batches of at most `batch_count` entries and `batch_bytes` bytes, until `last`; how many it took. */
    private static int readBatches(LedgerHandle handle, long first, long last, JsonNode arguments,
            Payload.Digest digest, List<String> bodies) throws Exception {
        int countMax = arguments.path("batch_count").asInt(100);
        long bytesMax = arguments.path("batch_bytes").asLong(1 << 20);
        int batches = 0;
        for (long next = first; next <= last; ) {
            long before = digest.count;
            int wanted = (int) Math.min(countMax, last - next + 1);
            take(handle.batchReadEntries(next, wanted, bytesMax), digest, bodies);
            if (digest.count == before) {
                throw new IllegalStateException("an empty batch at " + next);
            }
            next += digest.count - before;
            batches++;
        }
        return batches;
    }

    private static void take(Enumeration<LedgerEntry> entries, Payload.Digest digest, List<String> bodies) {
        while (entries.hasMoreElements()) {
            LedgerEntry entry = entries.nextElement();
            take(entry.getEntryId(), entry.getEntry(), digest, bodies);
        }
    }

    private static void take(LedgerEntries entries, Payload.Digest digest, List<String> bodies) {
        entries.forEach(entry -> take(entry.getEntryId(), entry.getEntryBytes(), digest, bodies));
    }

    private static void take(long entryId, byte[] payload, Payload.Digest digest, List<String> bodies) {
        digest.add(entryId, payload);
        if (bodies != null) {
            bodies.add(Base64.getEncoder().encodeToString(payload));
        }
    }

    /** {handle, how: read|try|explicit}. */
    private Object readLac(JsonNode arguments) throws Exception {
        switch (arguments.path("how").asText("read")) {
            case "read":
                return handle(arguments).readLastConfirmed();
            case "try":
                return handle(arguments).tryReadLastConfirmed();
            default:
                return handle(arguments).readExplicitLastConfirmed();
        }
    }

    /** {handle, entry, timeout_ms, parallel}: the long poll. */
    private Object poll(JsonNode arguments) throws Exception {
        CompletableFuture<LastConfirmedAndEntry> poll = handle(arguments).readLastAddConfirmedAndEntryAsync(
                arguments.get("entry").asLong(), arguments.path("timeout_ms").asLong(1000),
                arguments.path("parallel").asBoolean());
        try (LastConfirmedAndEntry found = poll.get(60, TimeUnit.SECONDS)) {
            Map<String, Object> answer = new LinkedHashMap<>();
            answer.put("lac", found.getLastAddConfirmed());
            answer.put("entry", found.hasEntry()
                    ? Base64.getEncoder().encodeToString(found.getEntry().getEntryBytes()) : null);
            return answer;
        }
    }
}
