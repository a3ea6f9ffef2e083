import com.fasterxml.jackson.databind.JsonNode;
import java.net.URI;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Base64;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.TimeUnit;
import org.apache.bookkeeper.bookie.Cookie;
import org.apache.bookkeeper.client.BKException;
import org.apache.bookkeeper.client.LedgerMetadataBuilder;
import org.apache.bookkeeper.client.api.DigestType;
import org.apache.bookkeeper.client.api.LedgerMetadata;
import org.apache.bookkeeper.conf.ServerConfiguration;
import org.apache.bookkeeper.discover.BookieServiceInfo;
import org.apache.bookkeeper.meta.LedgerIdGenerator;
import org.apache.bookkeeper.meta.LedgerManager;
import org.apache.bookkeeper.meta.MetadataBookieDriver;
import org.apache.bookkeeper.meta.MetadataDrivers;
import org.apache.bookkeeper.meta.zk.ZKMetadataDriverBase;
import org.apache.bookkeeper.net.BookieId;
import org.apache.bookkeeper.stats.NullStatsLogger;
import org.apache.bookkeeper.versioning.LongVersion;
import org.apache.bookkeeper.versioning.Version;
import org.apache.bookkeeper.versioning.Versioned;

/** Metadata as Java's ledger manager holds it, without any bookie. Bytes are in base64. */
final class Metadata {
    private final Clients clients;
    private final Map<Long, List<Object>> seen = new ConcurrentHashMap<>();
    private final Map<String, MetadataBookieDriver> registered = new HashMap<>();

    Metadata(Clients clients) {
        this.clients = clients;
    }

    void register(Map<String, Driver.Operation> operations) {
        operations.put("read_metadata", this::read);
        operations.put("create_metadata", this::create);
        operations.put("rewrite_metadata", this::rewrite);
        operations.put("watch_metadata", this::watch);
        operations.put("seen_metadata", a -> seen.get(a.get("id").asLong()));
        operations.put("ledger_ranges", this::ranges);
        operations.put("draw_ids", this::drawIds);
        operations.put("parse_uri", this::parseUri);
        operations.put("make_cookie", this::makeCookie);
        operations.put("register_bookie", this::registerBookie);
        operations.put("leave", this::leave);
    }

    private LedgerManager manager(JsonNode arguments) {
        return clients.get(arguments).getLedgerManager();
    }

    private static byte[] bytes(JsonNode text) {
        return Base64.getDecoder().decode(text.asText());
    }

    /** {client, id}: every field, and the version of the store. */
    private Object read(JsonNode arguments) throws Exception {
        return shown(manager(arguments).readLedgerMetadata(arguments.get("id").asLong()).get());
    }

    private static Map<String, Object> shown(Versioned<LedgerMetadata> found) {
        LedgerMetadata metadata = found.getValue();
        Map<String, Object> shown = new LinkedHashMap<>();
        boolean hasPassword = metadata.hasPassword();
        shown.put("state", metadata.getState().toString());
        shown.put("ensemble_size", metadata.getEnsembleSize());
        shown.put("write_quorum_size", metadata.getWriteQuorumSize());
        shown.put("ack_quorum_size", metadata.getAckQuorumSize());
        shown.put("digest", hasPassword ? metadata.getDigestType().toString() : null);
        shown.put("password", hasPassword ? Base64.getEncoder().encodeToString(metadata.getPassword()) : null);
        shown.put("format", metadata.getMetadataFormatVersion());
        shown.put("last_entry_id", metadata.isClosed() ? metadata.getLastEntryId() : null);
        shown.put("length", metadata.isClosed() ? metadata.getLength() : null);
        shown.put("ctime_ms", metadata.getCtime());
        shown.put("creator_token", metadata.getCToken());
        Map<String, Object> ensembles = new LinkedHashMap<>();
        metadata.getAllEnsembles().forEach((first, bookies) ->
                ensembles.put(String.valueOf(first), bookies.stream().map(BookieId::toString).toList()));
        shown.put("ensembles", ensembles);
        Map<String, String> custom = new LinkedHashMap<>();
        metadata.getCustomMetadata().forEach(
                (key, value) -> custom.put(key, Base64.getEncoder().encodeToString(value)));
        shown.put("custom", custom);
        shown.put("version", ((LongVersion) found.getVersion()).getLongVersion());
        return shown;
    }

    /** {client, id, and the fields as `read_metadata` shows them}; ctime_ms null: not stored. */
    private Object create(JsonNode arguments) throws Exception {
        long id = arguments.get("id").asLong();
        LedgerMetadataBuilder builder = LedgerMetadataBuilder.create()
                .withId(id)
                .withMetadataFormatVersion(arguments.get("format").asInt())
                .withEnsembleSize(arguments.get("ensemble_size").asInt())
                .withWriteQuorumSize(arguments.get("write_quorum_size").asInt())
                .withAckQuorumSize(arguments.get("ack_quorum_size").asInt());
        arguments.get("ensembles").fields().forEachRemaining(segment -> {
            List<BookieId> bookies = new ArrayList<>();
            segment.getValue().forEach(bookie -> bookies.add(BookieId.parse(bookie.asText())));
            builder.newEnsembleEntry(Long.parseLong(segment.getKey()), bookies);
        });
        if (arguments.hasNonNull("digest")) {
            builder.withDigestType(DigestType.valueOf(arguments.get("digest").asText()))
                    .withPassword(bytes(arguments.get("password")));
        }
        switch (arguments.get("state").asText()) {
            case "CLOSED":
                builder.withClosedState()
                        .withLastEntryId(arguments.get("last_entry_id").asLong())
                        .withLength(arguments.get("length").asLong());
                break;
            case "IN_RECOVERY":
                builder.withInRecoveryState();
                break;
            default:
        }
        if (arguments.hasNonNull("ctime_ms")) {
            builder.withCreationTime(arguments.get("ctime_ms").asLong()).storingCreationTime(true);
        }
        Map<String, byte[]> custom = new LinkedHashMap<>();
        arguments.get("custom").fields().forEachRemaining(
                field -> custom.put(field.getKey(), bytes(field.getValue())));
        builder.withCustomMetadata(custom);
        return shown(manager(arguments).createLedgerMetadata(id, builder.build()).get());
    }

    /** {client, id, version}: what is there, parsed and written again; over `version`, else what was read. */
    private Object rewrite(JsonNode arguments) throws Exception {
        long id = arguments.get("id").asLong();
        Versioned<LedgerMetadata> found = manager(arguments).readLedgerMetadata(id).get();
        Version over = arguments.has("version")
                ? new LongVersion(arguments.get("version").asLong()) : found.getVersion();
        return shown(manager(arguments).writeLedgerMetadata(id, found.getValue(), over).get());
    }

    /** {client, id}: from now on `seen_metadata` has what the listener was told, null for a deletion. */
    private Object watch(JsonNode arguments) {
        List<Object> told = new CopyOnWriteArrayList<>();
        seen.put(arguments.get("id").asLong(), told);
        manager(arguments).registerLedgerMetadataListener(arguments.get("id").asLong(),
                (id, metadata) -> told.add(metadata == null ? null : shown(metadata)));
        return true;
    }

    /** {client}: the ranges in the order in which a bookie's garbage collector gets them. */
    private Object ranges(JsonNode arguments) throws Exception {
        List<List<Long>> ranges = new ArrayList<>();
        LedgerManager.LedgerRangeIterator iterator = manager(arguments).getLedgerRanges(10_000);
        while (iterator.hasNext()) {
            ranges.add(new ArrayList<>(iterator.next().getLedgers()));
        }
        return ranges;
    }

    /** {uri, count}: ids from one generator, one after the other. */
    private Object drawIds(JsonNode arguments) throws Exception {
        ServerConfiguration configuration = new ServerConfiguration();
        configuration.setMetadataServiceUri(arguments.get("uri").asText());
        List<Long> ids = new ArrayList<>();
        MetadataDrivers.runFunctionWithLedgerManagerFactory(configuration, factory -> {
            try (LedgerIdGenerator generator = factory.newLedgerIdGenerator()) {
                for (int i = 0; i < arguments.get("count").asInt(); i++) {
                    CompletableFuture<Long> drawn = new CompletableFuture<>();
                    generator.generateLedgerId((rc, id) -> {
                        if (rc == 0) {
                            drawn.complete(id);
                        } else {
                            drawn.completeExceptionally(BKException.create(rc));
                        }
                    });
                    ids.add(drawn.get(30, TimeUnit.SECONDS));
                }
            } catch (Exception e) {
                throw new java.util.concurrent.CompletionException(e);
            }
            return null;
        });
        return ids;
    }

    /** {uri}: its servers, root and ledger manager (null: what LAYOUT says). */
    private Object parseUri(JsonNode arguments) {
        URI uri = URI.create(arguments.get("uri").asText());
        Class<?> factory = ZKMetadataDriverBase.resolveLedgerManagerFactory(uri);
        Map<String, Object> parsed = new LinkedHashMap<>();
        parsed.put("servers", ZKMetadataDriverBase.getZKServersFromServiceUri(uri));
        parsed.put("root", uri.getPath());
        parsed.put("factory", factory == null ? null : factory.getName());
        return parsed;
    }

    /** {bookie, journals, ledgers, indexes, instance_id}: the text of the cookie of this configuration. */
    private Object makeCookie(JsonNode arguments) throws Exception {
        ServerConfiguration configuration = new ServerConfiguration();
        configuration.setBookieId(arguments.get("bookie").asText());
        configuration.setJournalDirsName(texts(arguments.get("journals")));
        configuration.setLedgerDirNames(texts(arguments.get("ledgers")));
        if (arguments.hasNonNull("indexes")) {
            configuration.setIndexDirName(texts(arguments.get("indexes")));
        }
        Cookie.Builder cookie = Cookie.generateCookie(configuration);
        if (arguments.hasNonNull("instance_id")) {
            cookie.setInstanceId(arguments.get("instance_id").asText());
        }
        return cookie.build().toString();
    }

    /** {uri, bookie, readonly, endpoints, properties}: a registration without a bookie, until `leave`. */
    private Object registerBookie(JsonNode arguments) throws Exception {
        ServerConfiguration configuration = new ServerConfiguration();
        configuration.setMetadataServiceUri(arguments.get("uri").asText());
        MetadataBookieDriver driver =
                MetadataDrivers.getBookieDriver(URI.create(arguments.get("uri").asText()));
        driver.initialize(configuration, NullStatsLogger.INSTANCE);
        registered.put(arguments.get("bookie").asText(), driver);
        List<BookieServiceInfo.Endpoint> endpoints = new ArrayList<>();
        arguments.get("endpoints").forEach(endpoint -> endpoints.add(new BookieServiceInfo.Endpoint(
                endpoint.get("id").asText(), endpoint.get("port").asInt(), endpoint.get("host").asText(),
                endpoint.get("protocol").asText(), List.of(texts(endpoint.get("auth"))),
                List.of(texts(endpoint.get("extensions"))))));
        Map<String, String> properties = new LinkedHashMap<>();
        arguments.get("properties").fields().forEachRemaining(
                property -> properties.put(property.getKey(), property.getValue().asText()));
        driver.createRegistrationManager().registerBookie(
                BookieId.parse(arguments.get("bookie").asText()), arguments.path("readonly").asBoolean(),
                new BookieServiceInfo(properties, endpoints));
        return true;
    }

    private Object leave(JsonNode arguments) throws Exception {
        registered.remove(arguments.get("bookie").asText()).close();
        return true;
    }

    private static String[] texts(JsonNode array) {
        String[] texts = new String[array.size()];
        Arrays.setAll(texts, i -> array.get(i).asText());
        return texts;
    }
}
