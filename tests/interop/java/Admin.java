import com.fasterxml.jackson.databind.JsonNode;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Base64;
import java.util.Collection;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.apache.bookkeeper.bookie.Cookie;
import org.apache.bookkeeper.client.BookKeeperAdmin;
import org.apache.bookkeeper.conf.ServerConfiguration;
import org.apache.bookkeeper.discover.RegistrationManager;
import org.apache.bookkeeper.meta.MetadataDrivers;
import org.apache.bookkeeper.net.BookieId;
import org.apache.bookkeeper.util.AvailabilityOfEntriesOfLedger;
import org.apache.bookkeeper.versioning.Versioned;

/** What Java's admin API says of a cluster, and the changes it makes. */
final class Admin {
    private final Clients clients;

    Admin(Clients clients) {
        this.clients = clients;
    }

    void register(Map<String, Driver.Operation> operations) {
        operations.put("bookies", this::bookies);
        operations.put("bookie_info", this::bookieInfo);
        operations.put("service_info", this::serviceInfo);
        operations.put("ledgers", this::ledgers);
        operations.put("ledger_metadata", this::ledgerMetadata);
        operations.put("entries_of", this::entriesOf);
        operations.put("recover_bookie", this::recoverBookie);
        operations.put("init_cluster", a -> BookKeeperAdmin.initNewCluster(server(a)));
        operations.put("instance_id", this::instanceId);
        operations.put("cookie", this::cookie);
        operations.put("write_cookie", this::writeCookie);
    }

    private static ServerConfiguration server(JsonNode arguments) {
        ServerConfiguration configuration = new ServerConfiguration();
        configuration.setMetadataServiceUri(arguments.get("uri").asText());
        arguments.path("settings").fields().forEachRemaining(
                setting -> configuration.setProperty(setting.getKey(), setting.getValue().asText()));
        return configuration;
    }

    private static List<String> names(Collection<BookieId> bookies) {
        List<String> names = new ArrayList<>();
        bookies.forEach(bookie -> names.add(bookie.toString()));
        names.sort(null);
        return names;
    }

    private interface AdminCall {
        Object run(BookKeeperAdmin admin) throws Exception;
    }

    private Object with(JsonNode arguments, AdminCall call) throws Exception {
        try (BookKeeperAdmin admin = new BookKeeperAdmin(clients.get(arguments), clients.configuration(arguments))) {
            return call.run(admin);
        }
    }

    private Object bookies(JsonNode arguments) throws Exception {
        return with(arguments, admin -> {
            Map<String, Object> answer = new LinkedHashMap<>();
            answer.put("writable", names(admin.getAvailableBookies()));
            answer.put("readonly", names(admin.getReadOnlyBookies()));
            answer.put("all", names(admin.getAllBookies())); // by cookie
            return answer;
        });
    }

    private Object bookieInfo(JsonNode arguments) throws Exception {
        Map<String, Object> answer = new LinkedHashMap<>();
        clients.get(arguments).getBookieInfo().forEach((bookie, info) -> {
            Map<String, Object> space = new LinkedHashMap<>();
            space.put("total_bytes", info.getTotalDiskSpace());
            space.put("free_bytes", info.getFreeDiskSpace());
            answer.put(bookie.toString(), space);
        });
        return answer;
    }

    private Object serviceInfo(JsonNode arguments) throws Exception {
        return with(arguments, admin -> {
            List<Map<String, Object>> endpoints = new ArrayList<>();
            var info = admin.getBookieServiceInfo(BookieId.parse(arguments.get("bookie").asText()));
            info.getEndpoints().forEach(endpoint -> {
                Map<String, Object> shown = new LinkedHashMap<>();
                shown.put("id", endpoint.getId());
                shown.put("protocol", endpoint.getProtocol());
                shown.put("host", endpoint.getHost());
                shown.put("port", endpoint.getPort());
                shown.put("auth", endpoint.getAuth());
                shown.put("extensions", endpoint.getExtensions());
                endpoints.add(shown);
            });
            Map<String, Object> answer = new LinkedHashMap<>();
            answer.put("endpoints", endpoints);
            answer.put("properties", info.getProperties());
            return answer;
        });
    }

    private Object ledgers(JsonNode arguments) throws Exception {
        return with(arguments, admin -> {
            List<Long> ids = new ArrayList<>();
            admin.listLedgers().forEach(ids::add);
            ids.sort(null);
            return ids;
        });
    }

    private Object ledgerMetadata(JsonNode arguments) throws Exception {
        return Ledgers.metadata(clients.get(arguments).getLedgerManager()
                .readLedgerMetadata(arguments.get("id").asLong()).get().getValue());
    }

    /** {client, bookie, id}: the ids that the bookie says it holds. */
    private Object entriesOf(JsonNode arguments) throws Exception {
        return with(arguments, admin -> {
            AvailabilityOfEntriesOfLedger held = admin.asyncGetListOfEntriesOfLedger(
                    BookieId.parse(arguments.get("bookie").asText()), arguments.get("id").asLong()).get();
            List<Long> ids = new ArrayList<>();
            for (long entry = 0; entry < arguments.path("end").asLong(1000); entry++) {
                if (held.isEntryAvailable(entry)) {
                    ids.add(entry);
                }
            }
            Map<String, Object> answer = new LinkedHashMap<>();
            answer.put("count", held.getTotalNumOfAvailableEntries());
            answer.put("ids", ids);
            return answer;
        });
    }

    private Object recoverBookie(JsonNode arguments) throws Exception {
        return with(arguments, admin -> {
            admin.recoverBookieData(BookieId.parse(arguments.get("bookie").asText()));
            return true;
        });
    }

    private interface RegistrationCall {
        Object run(RegistrationManager registration) throws Exception;
    }

    private static Object registered(JsonNode arguments, RegistrationCall call) throws Exception {
        Object[] answer = new Object[1];
        MetadataDrivers.runFunctionWithRegistrationManager(server(arguments), registration -> {
            try {
                answer[0] = call.run(registration);
            } catch (Exception e) {
                throw new java.util.concurrent.CompletionException(e);
            }
            return null;
        });
        return answer[0];
    }

    private Object instanceId(JsonNode arguments) throws Exception {
        return registered(arguments, RegistrationManager::getClusterInstanceId);
    }

    /** {uri, bookie}: the cookie's text, as Java writes it after reading it. */
    private Object cookie(JsonNode arguments) throws Exception {
        return registered(arguments, registration -> {
            Versioned<Cookie> cookie = Cookie.readFromRegistrationManager(
                    registration, BookieId.parse(arguments.get("bookie").asText()));
            return cookie.getValue().toString();
        });
    }

    /** {uri, bookie, cookie: TEXT}: written anew, or over the one that is there. */
    private Object writeCookie(JsonNode arguments) throws Exception {
        return registered(arguments, registration -> {
            BookieId bookie = BookieId.parse(arguments.get("bookie").asText());
            byte[] text = arguments.get("cookie").asText().getBytes(StandardCharsets.UTF_8);
            org.apache.bookkeeper.versioning.Version version = org.apache.bookkeeper.versioning.Version.NEW;
            try {
                version = registration.readCookie(bookie).getVersion();
            } catch (org.apache.bookkeeper.bookie.BookieException.CookieNotFoundException none) {
                version = org.apache.bookkeeper.versioning.Version.NEW;
            }
            registration.writeCookie(bookie, new Versioned<>(text, version));
            return Base64.getEncoder().encodeToString(text);
        });
    }
}
