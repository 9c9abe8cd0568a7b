package config

import (
	"encoding/json"
	"reflect"
)

// JSONSchema is the schema of the file for editors, in JSON Schema 2020-12.
// Descriptions come from the reference page. It knows keys, shapes, words, ranges
// and what excludes what; the other checks of meaning are those of Parse.
func JSONSchema(page string) ([]byte, error) {
	texts := map[string]string{}
	all, err := Explain(page, "")
	if err != nil {
		return nil, err
	}
	for _, e := range all {
		texts[e.Key] = e.Text + " Default: " + e.Default + "."
	}
	schema := schemaOf(reflect.TypeFor[Config](), "", texts)
	schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	schema["title"] = "Configuration of Sonde"
	return json.MarshalIndent(schema, "", "  ")
}

func schemaOf(t reflect.Type, path string, texts map[string]string) map[string]any {
	out := map[string]any{}
	switch {
	case t == sizeType:
		out["anyOf"] = []any{map[string]any{"type": "integer", "minimum": 0}, map[string]any{"type": "string",
			"pattern": `^[0-9][0-9_]{0,15}(\.[0-9]+)? ?([KMGT]iB|[MGT]B|kB|B)?$`}}
	case t == layersType:
		layer := map[string]any{"type": []string{"integer", "string"}, "minimum": 0, "maximum": maxLayer,
			"pattern": `^ *([0-9]+(-[0-9]+)?( *, *[0-9]+(-[0-9]+)?)*|all) *$`}
		out["anyOf"] = []any{layer, map[string]any{"type": "array", "items": layer}}
	case t.Kind() == reflect.Pointer:
		return schemaOf(t.Elem(), path, texts)
	case t.Kind() == reflect.Struct:
		properties := map[string]any{}
		for i := range t.NumField() {
			key := t.Field(i).Tag.Get("yaml")
			properties[key] = schemaOf(t.Field(i).Type, join(path, key), texts)
		}
		// A block without keys below it is empty, and means the defaults.
		out["type"], out["properties"], out["additionalProperties"] = []string{"object", "null"}, properties, false
		if keys := needed[path]; keys != nil {
			out["required"] = keys
		}
		switch path {
		case "bus.nats":
			out["allOf"] = []any{never("nkey_file", "creds_file")}
		case "bus":
			out["allOf"] = []any{never("url", "kafka"), never("url", "embedded"), never("kafka", "embedded"),
				never("nats", "kafka"), never("nats", "embedded")}
			out["dependentSchemas"] = map[string]any{"nats": map[string]any{"required": []string{"url"}},
				"user": map[string]any{"anyOf": []any{
					map[string]any{"required": []string{"url"}}, map[string]any{"required": []string{"kafka"}}}}}
		}
	case t.Kind() == reflect.Slice:
		out["type"] = "array"
		out["items"] = schemaOf(t.Elem(), path+"[]", texts)
		if path == "policy.rules[].hooks" || path == "bus.kafka.brokers" {
			out["minItems"] = 1
		}
	case t.Kind() == reflect.Map:
		out["type"], out["additionalProperties"] = "object", map[string]any{"type": "string"}
	case t.Kind() == reflect.Bool:
		out["type"] = "boolean"
	case t.Kind() == reflect.Int:
		out["type"], out["minimum"], out["maximum"] = "integer", ranges[path][0], ranges[path][1]
	case t.Kind() == reflect.Float64:
		out["type"], out["minimum"], out["maximum"] = "number", 0, 100
	default:
		out["type"] = "string"
		if allowed := words[path]; allowed != nil {
			out["enum"] = allowed
		}
		if pattern := patterns[path]; pattern != "" {
			out["pattern"] = pattern
		}
	}
	if text := texts[path]; text != "" {
		out["description"] = text
	}
	return out
}

// never refuses a block that holds both keys.
func never(a, b string) map[string]any {
	return map[string]any{"not": map[string]any{"required": []string{a, b}}}
}
