package demo

import "fmt"

// prompts open sentences of the kind that the demo's model was trained on:
// manuals and handbooks in three languages.
var prompts = map[string][]string{
	"en": {
		"The package manager reads the list of sources and",
		"If the option is not given, the program writes to",
		"This command displays the contents of the directory",
		"The administrator must first configure the network",
		"When the system starts, the kernel loads",
		"The configuration file contains the following",
		"To install the software on a new machine, you should",
		"The server listens on a port and accepts",
		"Each user has a password which is stored in",
		"The function returns zero on success, otherwise",
		"Before upgrading the distribution, it is important to",
		"Files that begin with a dot are not shown unless",
		"The default value of this variable is",
		"A process that receives this signal will",
	},
	"fr": {
		"Le gestionnaire de paquets lit la liste des sources et",
		"Si cette option n'est pas donnée, le programme écrit",
		"Cette commande affiche le contenu du répertoire",
		"L'administrateur doit tout d'abord configurer le réseau",
		"Lorsque le système démarre, le noyau charge",
		"Le fichier de configuration contient les lignes",
		"Pour installer le logiciel sur une nouvelle machine, il faut",
		"Le serveur écoute sur un port et accepte",
		"Chaque utilisateur possède un mot de passe qui est",
		"La fonction renvoie zéro en cas de succès, sinon",
		"Avant de mettre à jour la distribution, il est important de",
		"Les fichiers qui commencent par un point ne sont pas",
		"La valeur par défaut de cette variable est",
	},
	"de": {
		"Der Paketmanager liest die Liste der Quellen und",
		"Wenn diese Option nicht angegeben wird, schreibt das Programm",
		"Dieser Befehl zeigt den Inhalt des Verzeichnisses",
		"Der Administrator muss zuerst das Netzwerk einrichten",
		"Wenn das System startet, lädt der Kernel",
		"Die Konfigurationsdatei enthält die folgenden",
		"Um die Software auf einem neuen Rechner zu installieren, sollten Sie",
		"Der Server wartet an einem Port und nimmt",
		"Jeder Benutzer hat ein Passwort, das in der Datei",
		"Die Funktion gibt bei Erfolg null zurück, ansonsten",
		"Vor der Aktualisierung der Distribution ist es wichtig,",
		"Dateien, die mit einem Punkt beginnen, werden nicht",
		"Der Standardwert dieser Variable ist",
	},
}

var languages = []string{"en", "fr", "de"}

// plan lists n requests, the languages in turn. Prompts repeat from the 41st
// request on, with another seed.
func plan(n int) []request {
	out := make([]request, n)
	for i := range out {
		language := languages[i%len(languages)]
		list := prompts[language]
		out[i] = request{ID: fmt.Sprintf("demo-%s-%02d", language, i/len(languages)+1), Language: language,
			Prompt: list[(i/len(languages))%len(list)], Seed: uint64(i + 1)}
	}
	return out
}
