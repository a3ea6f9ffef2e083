import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.concurrent.CompletionException;
import java.util.concurrent.ExecutionException;
import org.apache.bookkeeper.client.api.BKException;

/**
 * Does what a test tells it with the Java client: a JSON object a line on stdin, {"op": NAME, ...},
 * one a line on stdout, {"ok": RESULT} or {"error": CLASS, "code": NUMBER, "message": TEXT}.
 */
public final class Driver {
    interface Operation {
        Object run(JsonNode arguments) throws Exception;
    }

    public static void main(String[] arguments) throws Exception {
        PrintStream answers = System.out;
        System.setOut(System.err); // loggers write to stdout
        Map<String, Operation> operations = new LinkedHashMap<>();
        Clients clients = new Clients();
        clients.register(operations);
        new Ledgers(clients).register(operations);
        new Admin(clients).register(operations);
        new Metadata(clients).register(operations);
        ObjectMapper json = new ObjectMapper();
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            Map<String, Object> answer = answer(operations, json.readTree(line));
            answers.write((json.writeValueAsString(answer) + "\n").getBytes(StandardCharsets.UTF_8));
            answers.flush();
        }
        Runtime.getRuntime().halt(0); // open ledgers stay open: closing them is a command
    }

    private static Map<String, Object> answer(Map<String, Operation> operations, JsonNode request) {
        Map<String, Object> answer = new LinkedHashMap<>();
        try {
            Operation operation = operations.get(request.get("op").asText());
            if (operation == null) {
                throw new IllegalArgumentException("no operation " + request.get("op"));
            }
            answer.put("ok", operation.run(request));
        } catch (Throwable thrown) {
            answer.putAll(failure(thrown));
        }
        return answer;
    }

    static Map<String, Object> failure(Throwable thrown) {
        Throwable cause = thrown;
        while ((cause instanceof ExecutionException || cause instanceof CompletionException)
                && cause.getCause() != null) {
            cause = cause.getCause();
        }
        Map<String, Object> answer = new LinkedHashMap<>();
        answer.put("error", cause.getClass().getSimpleName());
        answer.put("code", cause instanceof BKException ? ((BKException) cause).getCode() : 0);
        answer.put("message", String.valueOf(cause.getMessage()));
        return answer;
    }

    private Driver() {}
}
