import com.fasterxml.jackson.databind.JsonNode;
import java.util.HashMap;
import java.util.Iterator;
import java.util.Map;
import org.apache.bookkeeper.client.BookKeeper;
import org.apache.bookkeeper.conf.ClientConfiguration;

/** The clients by name. connect {client, uri, settings: {KEY: VALUE}}; disconnect {client}. */
final class Clients {
    private final Map<String, BookKeeper> byName = new HashMap<>();
    private final Map<String, ClientConfiguration> configurations = new HashMap<>();

    void register(Map<String, Driver.Operation> operations) {
        operations.put("connect", this::connect);
        operations.put("disconnect", this::disconnect);
    }

    BookKeeper get(JsonNode arguments) {
        BookKeeper client = byName.get(arguments.get("client").asText());
        if (client == null) {
            throw new IllegalArgumentException("no client " + arguments.get("client"));
        }
        return client;
    }

    ClientConfiguration configuration(JsonNode arguments) {
        return configurations.get(arguments.get("client").asText());
    }

    static ClientConfiguration configurationOf(JsonNode arguments) {
        ClientConfiguration configuration = new ClientConfiguration();
        configuration.setMetadataServiceUri(arguments.get("uri").asText());
        Iterator<Map.Entry<String, JsonNode>> settings = arguments.path("settings").fields();
        while (settings.hasNext()) {
            Map.Entry<String, JsonNode> setting = settings.next();
            configuration.setProperty(setting.getKey(), setting.getValue().asText());
        }
        return configuration;
    }

    private Object connect(JsonNode arguments) throws Exception {
        ClientConfiguration configuration = configurationOf(arguments);
        String name = arguments.get("client").asText();
        byName.put(name, new BookKeeper(configuration));
        configurations.put(name, configuration);
        return name;
    }

    private Object disconnect(JsonNode arguments) throws Exception {
        BookKeeper client = get(arguments);
        byName.remove(arguments.get("client").asText());
        client.close();
        return true;
    }
}
