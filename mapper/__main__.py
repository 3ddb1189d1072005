from mapper.commands.cli import main

main()
