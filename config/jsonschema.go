package config

import (
	"encoding/json"
	"reflect"
)

// JSONSchema is the schema of the file for editors, in JSON Schema 2020-12.
// Descriptions come from the reference page. It knows keys and shapes; the checks
// of meaning are those of Parse.
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
			"pattern": `^[0-9][0-9_]*(\.[0-9]+)? ?([KMGT]i?B|kB|B)?$`}}
	case t == layersType:
		layer := map[string]any{"type": []string{"integer", "string"}}
		out["anyOf"] = []any{layer, map[string]any{"type": "array", "items": layer}}
	case t.Kind() == reflect.Pointer:
		return schemaOf(t.Elem(), path, texts)
	case t.Kind() == reflect.Struct:
		properties := map[string]any{}
		for i := range t.NumField() {
			key := t.Field(i).Tag.Get("yaml")
			properties[key] = schemaOf(t.Field(i).Type, join(path, key), texts)
		}
		out["type"], out["properties"], out["additionalProperties"] = "object", properties, false
	case t.Kind() == reflect.Slice:
		out["type"] = "array"
		items := path
		if t.Elem().Kind() == reflect.Struct {
			items += "[]"
		}
		out["items"] = schemaOf(t.Elem(), items, texts)
	case t.Kind() == reflect.Map:
		out["type"], out["additionalProperties"] = "object", map[string]any{"type": "string"}
	case t.Kind() == reflect.Bool:
		out["type"] = "boolean"
	case t.Kind() == reflect.Int:
		out["type"] = "integer"
	case t.Kind() == reflect.Float64:
		out["type"] = "number"
	default:
		out["type"] = "string"
	}
	if text := texts[path]; text != "" {
		out["description"] = text
	}
	return out
}
